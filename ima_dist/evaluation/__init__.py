"""Attacks on a trained network, spread over the workers, and their outcomes."""
