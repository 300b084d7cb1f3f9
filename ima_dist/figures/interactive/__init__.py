"""Interactive figures, shared by dashboard and report: pure functions from data to a Plotly figure."""
