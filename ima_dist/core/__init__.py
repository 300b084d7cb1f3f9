"""Collectives, norms and keyed random numbers: the ground that everything numerical stands on."""
