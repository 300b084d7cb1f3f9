"""What is checked on the login node before a submission, so that no job waits for a day to find it out."""

from cluster import slurm
from cluster.directives import words
from cluster.plan import Plan
from ima_dist.config.errors import ConfigError


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
    from ima_dist.data import prepared
    from ima_dist.data.prepare import PUBLISHED

    seen = set()
    for config in plan.configs:
        name, data = config.preset, config.data
        key = (name, data.source, data.dir, data.download)
        if key in seen or name not in PUBLISHED or not data.source.startswith("ima_dist.") or "$" in (data.dir or ""):
            continue
        seen.add(key)
        if prepared.locate(name, data) is None:
            PUBLISHED[name].find(data)
