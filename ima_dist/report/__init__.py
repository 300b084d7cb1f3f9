"""Our figures beside the paper's: one HTML file and CSV files from finished runs."""
