"""What submitit runs on every node of a job, one task per node.

Task 0 (``cluster.leader``) starts Ray's head and, when the other nodes have joined, the run; the other tasks
(``cluster.start.Follower``) join and wait for its end. SLURM's signals are for the tasks only. They do not reach Ray,
and the run gets exactly one (SIGINT), because it takes a second one for impatience. ``cluster.policy`` has the rules.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import processes
from cluster.leader import Leader
from cluster.records import Row
from cluster.start import Follower, Leave, Stopped


@dataclass(frozen=True)
class Task:
    """The function that submitit runs on every node.

    folder: of the job's records. submitted: Unix time. notice, join_timeout (seconds), interface, temp: as in
    partitions.toml.
    """

    folder: Path
    row: Row
    submitted: float
    notice: int
    join_timeout: int
    interface: str | None = None
    temp: str | None = None

    def __call__(self) -> dict[str, Any]:
        """Returns {"status": 0, "run": …}; raises RunFailed, or SystemExit if SLURM starts the job again."""
        rank = int(os.environ.get("SLURM_PROCID", 0))
        start = Follower(self, rank) if rank else Leader(self, rank)
        processes.adopt_orphans()
        start.take_signals()
        try:
            return start.run()
        except Leave as reason:
            start.note(f"{reason}.")
            sys.exit(0)
        except Stopped:
            sys.exit(0)
