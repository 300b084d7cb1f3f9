"""What the commands share: the command line, exit statuses, paths, progress, checks and results."""
