"""What is checked on the login node before a submission, so that no job waits for a day to find it out."""

import subprocess
import sys

from cluster import slurm
from cluster.directives import words
from cluster.plan import Plan
from ima_dist.config.errors import ConfigError

# Presets whose data no file holds, or that the user's own function loads.
_COMPUTED = ("moons", "own")


def check_gpus(plan: Plan) -> None:
    """Raises ConfigError if the nodes have GPUs and none is asked for, unless --device cpu was given."""
    if plan.asks_cpus or plan.partition.gpus(plan.nodes):
        return
    asked = plan.partition.asked(plan.nodes)
    where = words({key: value for key, value in asked.items() if key in ("partition", "clusters")})
    offers = slurm.command("sinfo", "--noheader", "--format=%G", *where).split()
    cards = sorted({offer for offer in offers if offer.startswith("gpu")})
    if cards:
        raise ConfigError(
            f"The nodes of partition {asked.get('partition', plan.partition.name)} have GPUs ({', '.join(cards)}), but "
            "none is asked for: set gres, or sbatch = {gpus-per-node = …}, in partitions.toml; or give --device cpu."
        )


def check_data(plan: Plan) -> None:
    """Look for the files of published data sets, and fetch them here if --data.download was given.

    Compute nodes often have no internet. Raises ConfigError.
    """
    found = {(c.preset, c.data.dir, c.data.download) for c in plan.configs if c.data.source.startswith("ima_dist.")}
    for name, place, download in sorted(found, key=str):
        if name in _COMPUTED or "$" in (place or ""):
            continue
        words = [name, *(["--dir", place] if place else []), *(["--download"] if download else [])]
        # A process of its own: this side of the package knows nothing of data.
        done = subprocess.run(
            [sys.executable, "-m", "ima_dist.data", "find", *words], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"{name}: status {done.returncode}"]
            raise ConfigError(said[-1].removeprefix("error: "))
