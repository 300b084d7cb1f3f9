"""Data sets, their place on a device, and the order in which an epoch visits them."""
