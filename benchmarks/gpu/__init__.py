"""A check for a machine with a card: ``python -m benchmarks.gpu``, described in docs/gpu.md. One part per module."""
