"""The notebooks of the documentation run, and are stored with their outputs and without the paths of a machine."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import pytest

from tests.support import notebooks
from tests.support.commands import ROOT

FILES = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_runs(file, tmp_path, monkeypatch):
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    names = notebooks.run(file)
    plt.close("all")
    if file.stem == "quickstart":
        assert names["robust"].status == "finished"
        assert "worst" in {point.attack for point in names["robust"].points}
        assert len(names["found"]) == 6
    else:
        assert names["found"].accuracy("worst", 0.05) <= names["found"].accuracy("worst", 0.0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_is_stored_as_it_was_run(file):
    cells = notebooks.cells(file)
    assert len(cells) <= 15
    assert "pip install" in json.dumps(cells)
    run = [c for c in cells if c["cell_type"] == "code" and notebooks.SKIPPED not in c["metadata"].get("tags", ())]
    counts = [cell["execution_count"] for cell in run]
    assert counts == sorted(set(counts))
    kinds = {output["output_type"] for cell in run for output in cell["outputs"]}
    assert "error" not in kinds
    assert {"stream", "execute_result", "display_data"} <= kinds
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|private|opt|usr|var)/", text)
