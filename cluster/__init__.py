"""SLURM: submit jobs to a cluster, look at them, and check that a cluster is fit for them."""
