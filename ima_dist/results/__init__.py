"""What a run leaves behind: its files, the paper's figures to compare with, tables and pictures.

Nothing here imports torch, so that reports and dashboards open anywhere.
"""
