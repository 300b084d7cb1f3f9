"""What sbatch is asked for: our directives, those of the user that replace them, and how many GPUs they come to.

Nothing here asks SLURM or writes a file.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from ima_dist.config.errors import ConfigError

#: Long names (without dashes in front) of sbatch's options, and their values; True for an option without one.
Directives = dict[str, str | bool]

_LONG = {
    "A": "account", "C": "constraint", "G": "gpus", "J": "job-name", "L": "licenses", "M": "clusters", "N": "nodes",
    "c": "cpus-per-task", "d": "dependency", "e": "error", "n": "ntasks", "o": "output", "p": "partition", "q": "qos",
    "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip
# The submission relies on what it writes itself here.
_OURS = {
    "nodes": "use --nodes",
    "array": "use --rows and --at-once",
    "ntasks": "each node has one task",
    "ntasks-per-node": "each node has one task",
    "output": "the logs are in runs/cluster",
    "error": "the logs are in runs/cluster",
    "open-mode": "a requeued job appends to its log",
    "wrap": "the job file says what runs",
}
# These may be left out, but are given elsewhere, because the job must know them.
_ELSEWHERE = {"time": "use --time, or time in partitions.toml", "signal": "set notice in partitions.toml"}
_MEMORY = {"mem", "mem-per-cpu", "mem-per-gpu"}
_CPUS = {"cpus-per-task", "cpus-per-gpu"}
_GPUS_OF_NODE = ("gres", "gpus-per-node", "gpus-per-task", "tres-per-node", "tres-per-task")
_GPUS_OF_SOCKET = ("gpus-per-socket", "tres-per-socket")
_GPUS_OF_JOB = ("gpus", "tres-per-job")
_GPU_REQUESTS = {*_GPUS_OF_NODE, *_GPUS_OF_SOCKET, *_GPUS_OF_JOB}
# Of each of these sets SLURM takes one: a new one replaces ours.
_ALTERNATIVES = (_MEMORY, _CPUS, _GPU_REQUESTS)


def normalised(given: Mapping[str, Any]) -> Directives:
    """The user's options of sbatch by their long names; "" for one that is to be left out.

    Underscores and short names are accepted. True stands for an option without a value; False, None and "" leave an
    option out. Raises ConfigError for one that cannot be changed.
    """
    found: Directives = {}
    for key, value in given.items():
        word = key.lstrip("-")
        name = _LONG.get(word, word.replace("_", "-"))
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise ConfigError(f"{key!r} is not an option of sbatch: write its long name, such as mail-type.")
        left_out = value is None or value is False or value == ""
        if name in _OURS or (name in _ELSEWHERE and not left_out):
            raise ConfigError(f"sbatch's --{name} cannot be set in this way: {(_OURS | _ELSEWHERE)[name]}.")
        if isinstance(value, Mapping | list) or (isinstance(value, str) and "\n" in value):
            raise ConfigError(f"sbatch's --{name} must have a value in one line, not {value!r}.")
        found[name] = "" if left_out else value if value is True else str(value)
    return found


def parse_words(words: list[str]) -> Directives:
    """Words of --sbatch: KEY=VALUE; KEY= leaves an option out, KEY alone has no value. Raises ConfigError."""
    pairs = (word.partition("=") for word in words)
    return normalised({key.strip(): value if equals else True for key, equals, value in pairs})


def merged(ours: Mapping[str, str | bool | None], given: Mapping[str, str | bool]) -> Directives:
    """Our directives with the user's, which replace those of the same name or kind; ``given`` as from normalised."""
    found = {name: value for name, value in ours.items() if value not in (None, "")}
    asked = {name for name, value in given.items() if value != ""}
    for kind in _ALTERNATIVES:
        # Another generic resource ("gres = nvme:1") also takes the place of our gres.
        if asked & kind:
            found = {name: value for name, value in found.items() if name not in kind}
    for name, value in given.items():
        if value == "":
            found.pop(name, None)
        else:
            found[name] = value
    return {name: value for name, value in sorted(found.items()) if value is not None}


def lines(directives: Directives) -> list[str]:
    """The directives as lines of a batch script."""
    return [f"#SBATCH --{k}" if v is True else f"#SBATCH --{k}={shlex.quote(str(v))}" for k, v in directives.items()]


def words(directives: Directives) -> list[str]:
    """The directives as words of a command line."""
    return [f"--{k}" if v is True else f"--{k}={v}" for k, v in directives.items()]


def gpus(directives: Directives, nodes: int) -> int:
    """How many GPUs a job of so many nodes, with one task each, asks for on each of them; 0 for none.

    Understands all of SLURM's ways: gres, gpus, gpus-per-node, -task and -socket, tres-per-job, -node, -task and
    -socket. Raises ConfigError if a request for GPUs cannot be read, or differs between nodes.
    """
    found = [_count(name, directives) for name in _GPUS_OF_NODE]
    for name in _GPUS_OF_SOCKET:
        count = _count(name, directives)
        sockets = str(directives.get("sockets-per-node", ""))
        if count and not sockets.isdigit():
            raise ConfigError(f"--{name} does not say how many GPUs a node has: give --gpus-per-node instead.")
        found.append(count * int(sockets or 0))
    for name in _GPUS_OF_JOB:
        count = _count(name, directives)
        if count % nodes:
            raise ConfigError(
                f"--{name}={directives[name]} gives {nodes} nodes no equal number of GPUs: ask for a multiple of "
                f"{nodes}, or use --gpus-per-node."
            )
        found.append(count // nodes)
    if len(set(found) - {0}) > 1:
        said = " and ".join(words({k: v for k, v in directives.items() if k in _GPU_REQUESTS}))
        raise ConfigError(f"{said} ask for different numbers of GPUs: keep one of them.")
    return max(found)


def gpu_kind(directives: Directives) -> str:
    """What a request for GPUs names, as sinfo lists it: "gpu:v100", or "gpu" for any; "" if none is asked for."""
    for name in sorted(_GPU_REQUESTS & directives.keys()):
        for part in str(directives[name]).split(","):
            pieces = [p for p in re.split("[:/=]", part) if p not in ("gres", "gpu")]
            if name.startswith("gpus") or "gpu" in part:
                return ":".join(["gpu", *(p for p in pieces[:1] if not p.isdigit())])
    return ""


def _count(name: str, directives: Directives) -> int:
    """GPUs that one option asks for. Raises ConfigError if it cannot be read."""
    value = directives.get(name)
    if value is None:
        return 0
    total = 0
    for part in str(value).split(","):
        # gpus: [type:]count; elsewhere [gres/]gpu[:type][:count], with = before the count in newer versions.
        found = re.fullmatch(r"(?:gres[:/])?([\w.-]+)((?:[:/=][\w.-]+)*)", part.strip())
        if not found:
            raise ConfigError(f"--{name}={value}: {part!r} is not a number of GPUs; write, for example, v100:2.")
        pieces = [piece for piece in re.split("[:/=]", found[2]) if piece]
        if name.startswith("gpus"):
            pieces = [found[1], *pieces]
        elif found[1] in ("mps", "shard"):  # a share of a GPU
            pieces = []
        elif found[1] != "gpu":
            continue
        if len(pieces) > 2 or (len(pieces) == 2 and not pieces[1].isdigit()):
            raise ConfigError(f"--{name}={value}: {part!r} is not a number of GPUs; write, for example, v100:2.")
        total += int(pieces[-1]) if pieces and pieces[-1].isdigit() else 1
    return total
