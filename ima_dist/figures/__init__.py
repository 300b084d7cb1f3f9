"""Pictures: PNG files for a run, interactive figures for report and dashboard."""
