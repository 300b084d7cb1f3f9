"""checkpoint.json: which checkpoint of a run is the newest, and which host has written it.

On shared storage a node may list a directory as it was half a minute ago. A start that took the newest checkpoint of
such a list would repeat what its predecessor had done, or begin the run anew.
"""

import platform
import re
from pathlib import Path

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json, wait_for


def note(run: RunDir, checkpoint: Path) -> None:
    """Note that ``checkpoint`` is the newest. Raises LeaseLost, OSError."""
    run.write_json(run.newest_path, {"name": checkpoint.name, "host": platform.node()})


def newest(run: RunDir) -> Path | None:
    """The checkpoint that the run notes, there or not; waited for, with its files, if another host has written it.

    Runs of earlier versions note none.
    """
    try:
        found = read_json(run.newest_path) or {}
    except ConfigError:
        return None
    name = str(found.get("name"))
    if not re.fullmatch(r"epoch=\d+(-step=\d+)?", name):
        return None
    state = run.checkpoints_dir / name / "state.json"
    if found.get("host") != platform.node():
        try:
            wait_for([state])
            wait_for(run.path / file for file in (read_json(state) or {}).get("files", {}))
        except (OSError, ConfigError):
            pass  # whoever reads the checkpoint says what is wrong with it
    return state.parent
