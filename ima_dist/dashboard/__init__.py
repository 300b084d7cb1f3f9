"""Shows the runs of a results directory in a browser. It only reads, never unpickles, and needs no torch or Ray."""
