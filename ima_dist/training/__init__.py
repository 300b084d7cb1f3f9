"""One worker's training loop and its checkpoints. Does not depend on Ray."""
