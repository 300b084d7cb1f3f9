"""What one run leaves behind: its directory, files and lease."""
