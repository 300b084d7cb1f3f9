"""The classifier that comes out of a run: loaded, used, and exported for others."""
