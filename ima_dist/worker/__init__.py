"""The worker's side of Ray: one task on one device, in step with the other workers."""
