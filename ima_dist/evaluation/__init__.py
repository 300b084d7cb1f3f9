"""Attacks on a trained network, spread over the workers, and what they found."""
