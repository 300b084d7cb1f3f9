"""Job and sweep files, and which commands their runs still need."""
