"""The house stays in order: small files and functions, a true map, a README that can be read in one go."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.commands import ROOT

FILES = sorted(file for part in ("ima_dist", "cluster", "benchmarks") for file in (ROOT / part).rglob("*.py"))
MAP = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_small(file):
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
            reason = lines[node.body[0].end_lineno] if ast.get_docstring(node) else lines[node.lineno]
            assert "# Long" in reason, f"{node.name} is over 60 lines, without a comment '# Long: …' at its top"


def test_the_map_names_every_part_and_nothing_else():
    named = set(re.findall(r"`((?:ima_dist|cluster|tests|jobs|benchmarks|docs)/[\w./]*)`", MAP))
    assert not [path for path in named if not (ROOT / path).exists()]
    folders = [p for p in (ROOT / "ima_dist").iterdir() if (p / "__init__.py").exists()]
    parts = {f"ima_dist/{p.name}/" for p in folders}
    assert not parts - named


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
