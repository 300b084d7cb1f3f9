"""The code that a submission's jobs run: a copy, so that later changes of the checkout do not reach them."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cluster
import ima_dist
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".git")


def take(folder: Path, configs: Iterable[Config]) -> dict[str, Any]:
    """Copy this package, and the user's modules that the configurations name, to ``folder``/code.

    Returns what is to be recorded: path; commit and changed (what git says of the checkout, if it is one); modules
    (the user's, copied); in_place (those that are not copied, because they look for files beside themselves).
    """
    code = folder / "code"
    for package in (ima_dist, cluster):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, code / source.name, ignore=_LEFT_OUT)
    copied, in_place = [], []
    for name, root in sorted(_users_modules(configs).items()):
        if _finds_itself(root / name):
            in_place.append(name)
            continue
        copied.append(name)
        if (root / name).is_dir():
            shutil.copytree(root / name, code / name, ignore=_LEFT_OUT)
        else:
            shutil.copyfile(root / name, code / name)
    return {"path": str(code), **_git(Path(str(ima_dist.__file__)).parent), "modules": copied, "in_place": in_place}


def exports(code: str, here: Path) -> list[str]:
    """Lines of a batch script with which Python, and Ray's workers, take modules from ``code`` first.

    here: the directory of the submission, from which the user's other modules are imported.
    """
    return [
        "export PYTHONSAFEPATH=1",  # else the current directory, perhaps the checkout, would come first
        f"export IMA_DIST_CODE={shlex.quote(code)}",
        f'export PYTHONPATH="$IMA_DIST_CODE":{shlex.quote(str(here))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
    ]


def _users_modules(configs: Iterable[Config]) -> dict[str, Path]:
    """Files and packages of the user at the top level, and the directories from which they are imported."""
    from ima_dist.cli.own_code import own_files

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = {}
    for config in {(c.data.source, c.data.augment, c.model.factory): c for c in configs}.values():
        # What cannot be imported here may exist only where jobs run.
        with contextlib.suppress(ConfigError):
            for name, path in own_files(config).items():
                root = path.parents[name.count("/")]
                found[name.split("/")[0]] = root
    return found


def _finds_itself(path: Path) -> bool:
    files = path.rglob("*.py") if path.is_dir() else [path]
    return any("__file__" in file.read_text(errors="replace") for file in files)


def _git(directory: Path) -> dict[str, Any]:
    """What git says of the checkout around a directory; {} if there is none."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # A directory that git ignores, such as a virtual environment in another project, is no checkout of ours.
        if git("ls-files", "__init__.py"):
            return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    return {}
