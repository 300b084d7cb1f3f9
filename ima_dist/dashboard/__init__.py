"""A page for the runs of a results directory. It only reads, never unpickles, and needs neither torch nor Ray."""
