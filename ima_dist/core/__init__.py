"""Collectives, norms, keyed random numbers and polling, on which everything else is built."""
