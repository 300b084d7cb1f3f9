"""Data sets, their copies on a device, and the order in which an epoch visits them."""
