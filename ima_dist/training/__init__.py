"""One worker's training loop and its checkpoints. Knows nothing of Ray."""
