"""Checking that the head of a Ray cluster still answers."""

import socket
import time

LOOK_EVERY = 2.0  # seconds between two checks


class Head:
    """The address of Ray's GCS, which the driver or a worker checks."""

    def __init__(self) -> None:
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._answered = time.monotonic()

    def __str__(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def silent_for(self) -> float:
        """Seconds since it last accepted a connection; 0 if it does now."""
        try:
            socket.create_connection(self._address, timeout=5).close()
        except OSError:
            return time.monotonic() - self._answered
        self._answered = time.monotonic()
        return 0.0
