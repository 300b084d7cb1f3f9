"""Many runs as data: Parquet tables, the collection that the dashboard reads, TensorBoard and MLflow."""
