"""Timings of the parts that matter, each a module that prints one JSON document."""
