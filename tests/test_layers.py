"""Imports point one way only (CONTRIBUTING.md, "Where things are")."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ima_dist"

_BASE = {"config", "presets", "references", "snapshots", "jobs", "sweeps", "__init__"}
_LOW = _BASE | {"distributed", "norms", "noise"}
_RESULTS = {"results", "progress"}
_MIDDLE = _LOW | {"attacks", "margins", "models", "data"}
# top-level module or folder -> what it may import from the package, itself included
ALLOWED = {
    **dict.fromkeys(_BASE, _BASE),
    "distributed": _LOW,
    "norms": _LOW,
    "noise": _LOW,
    "attacks": _LOW | {"attacks"},
    "margins": _LOW,
    "models": _LOW | {"models"},
    "data": _LOW | {"data"},
    "methods": _MIDDLE | {"methods"},
    "results": _BASE | {"results"},
    "progress": _BASE | _RESULTS,
    "dashboard": _BASE | _RESULTS | {"dashboard"},
    "evaluation": _MIDDLE | {"results", "evaluation"},
    "engine": _MIDDLE | {"methods", "results", "evaluation", "engine"},
    "interfaces": _BASE,
    "elastic": _BASE,
    "head": _BASE,
    "worker": _MIDDLE | {"head", "elastic"} | {"methods", "results", "engine", "evaluation"},
    "launcher": _BASE | {"head", "interfaces", "elastic", "worker", "results"},
    "trials": _BASE | {"elastic", "launcher", "results"},
}
ENTRY_POINTS = {
    "train",
    "evaluate",
    "audit",
    "recommend",
    "job",
    "sweep",
    "report",
    "dataset",
    "data.__main__",
    "dashboard.__main__",
}
ONLY_IN = {
    "ray": {"head", "launcher", "interfaces", "elastic", "worker", "trials"} | ENTRY_POINTS,
    "advertorch": {"evaluation"},
    "pyautoattack": {"evaluation"},
    "submitit": set(),
    "dash": {"dashboard"},
    "flask": {"dashboard"},
    "plotly": {"dashboard", "results"},
    "mlflow": {"results"},
    "tensorboardX": {"results"},
}
NO_TORCH = _BASE | _RESULTS | {"dashboard", "dashboard.__main__"}


def part_of(file: Path) -> str:
    """Top-level module or folder; an entry point in a folder counts by itself."""
    inside = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(inside) if inside[-1] == "__main__" else inside[0]


def imports(file: Path) -> set[str]:
    """Dotted names of the modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    part = part_of(file)
    names = imports(file)
    for name in names:
        top, *rest = name.split(".")
        if top == "ima_dist" and rest and part not in ENTRY_POINTS:
            assert rest[0] in ALLOWED[part] | {"__version__"}, f"{part} imports {name}"
        assert top != "cluster", f"{file} imports cluster"
        if top in ONLY_IN:
            assert part in ONLY_IN[top], f"{part} imports {name}"
        if part in NO_TORCH:
            assert top not in ("torch", "torchvision", "ray"), f"{part} imports {name}"


def test_every_part_has_a_rule():
    assert {part_of(f) for f in FILES} == set(ALLOWED) | ENTRY_POINTS


def test_results_open_without_torch():
    code = (
        "import sys, ima_dist.presets, ima_dist.progress, ima_dist.results.paper, ima_dist.results.figures, "
        "ima_dist.results.table, ima_dist.results.rundir, ima_dist.report; "
        "print([m for m in ('torch', 'ray', 'advertorch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


CLUSTER = sorted((ROOT / "cluster").glob("*.py"))


@pytest.mark.parametrize("file", CLUSTER, ids=lambda f: f"cluster/{f.name}")
def test_cluster_starts_processes_and_knows_no_training_code(file):
    names = imports(file)
    for name in names:
        top, *rest = name.split(".")
        assert top != "ima_dist" or not rest or rest[0] in NO_TORCH, f"{file.name} imports {name}"
        assert top not in ("ray", "torchvision"), f"{file.name} imports {name}"
        # The doctor alone asks torch what it is built for.
        assert top != "torch" or file.name == "doctor.py", f"{file.name} imports {name}"
