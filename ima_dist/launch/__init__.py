"""The driver's side of Ray: start or join a cluster, run a task on its workers, run a sweep's trials."""
