"""The user's modules behind a run: kept in it as they were, and compared when something is added to it."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ima_dist.cli.given_code import is_kept
from ima_dist.config.augmentations import steps_of
from ima_dist.config.references import resolve_reference
from ima_dist.config.schema import Config
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json

_OURS = ("ima_dist", "cluster")
_CHECKSUMS = "checksums.json"


def keep_code(run: RunDir, config: Config) -> None:
    """Copy the user's modules into ``code/``, with their SHA-256 in ``code/checksums.json``. Raises OSError."""
    sources = {name: path.read_bytes() for name, path in own_files(config).items()}
    for name, source in sources.items():
        with run.replacing(run.code_dir / name) as file:
            file.write(source)
    if sources:
        run.write_json(run.code_dir / _CHECKSUMS, {name: _digest(source) for name, source in sources.items()})


def changed_code(run: RunDir, config: Config) -> list[str]:
    """The files of the user that are no longer as the run has kept them. Raises ConfigError if the list is damaged."""
    kept = read_json(run.code_dir / _CHECKSUMS) or {}
    now = own_files(config) if kept else {}
    return [name for name, digest in kept.items() if name not in now or _digest(now[name].read_bytes()) != digest]


def own_files(config: Config) -> dict[str, Path]:
    """The files with the user's functions, and those of the user that these import; by path below their directory."""
    found: dict[str, Path] = {}
    named = [(config.data.source, "data.source"), (config.model.factory, "model.factory")]
    if config.data.augment and steps_of(config.data.augment) is None:
        named.append((config.data.augment, "data.augment"))
    for reference, option in named:
        function = resolve_reference(reference, option)
        names = {reference.partition(":")[0], getattr(function, "__module__", None) or ""} & sys.modules.keys()
        for kept in [name for name in names if is_kept(name)]:
            # It lies in the run; what it imports lies elsewhere.
            file = getattr(sys.modules[kept], "__file__", None)
            names |= {*_imports(Path(file), [])} & sys.modules.keys() if file else set()
        for name in sorted(names):
            root = _root(sys.modules[name])
            if root is not None:
                _follow(name, root, found)
    return dict(sorted(found.items()))


def _follow(module: str, root: Path, found: dict[str, Path]) -> None:
    """Add the file of ``module``, if it lies below ``root``, those of its packages, and what they import from there."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        for name in ("/".join(parts[:depth]) + ".py", "/".join((*parts[:depth], "__init__.py"))):
            if name in found or parts[0] in _OURS or not (root / name).is_file():
                continue
            found[name] = root / name
            package = parts[:depth] if name.endswith("__init__.py") else parts[: depth - 1]
            for other in _imports(root / name, package):
                _follow(other, root, found)


def _imports(file: Path, package: list[str]) -> Iterator[str]:
    """The modules that a file in ``package`` may import: of ``from a import b``, both a and a.b."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # never imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            yield from (".".join((*base, alias.name)) for alias in node.names)


def _root(module: ModuleType) -> Path | None:
    """The directory from which ``module`` is imported; None for one of ours, of Python or of an installed package."""
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py") or module.__name__.partition(".")[0] in _OURS:
        return None
    path = Path(file).resolve()
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
    # Also that of the user, of Debian, and of an environment that this one extends.
    if {"site-packages", "dist-packages"} & {*path.parts} or any(path.is_relative_to(place) for place in installed):
        return None
    return path.parents[module.__name__.count(".") + (path.name == "__init__.py")]


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
