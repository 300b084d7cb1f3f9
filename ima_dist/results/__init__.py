"""What results mean: the paper's tables, statistics, comparisons and the text of tables. No torch."""
