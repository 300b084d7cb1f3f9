"""The copy of the code that a submission's jobs run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cluster import sbatch, snapshot, submit
from cluster.partitions import choose
from ima_dist.config.presets import make_config
from tests.support.commands import ROOT


def test_jobs_run_the_code_as_it_was(tmp_path, monkeypatch):
    """The copy comes first, before the checkout and what has become of the user's modules; the others are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine_then.py").write_text("import helper_then\ndef build(classes, shape):\n    return 1\nSAID = 'then'\n")
    Path("helper_then.py").write_text("SAID = 'then'\n")
    Path("finds_then.py").write_text("HERE = __file__\ndef load(seed):\n    return 1\n")
    (tmp_path / "ima_dist").mkdir()
    (tmp_path / "ima_dist" / "__init__.py").write_text("raise SystemExit('the checkout of today')\n")
    config = make_config("moons", {"model.factory": "mine_then:build", "data.source": "finds_then:load"})
    said = snapshot.take(tmp_path / "records", [config])
    assert said["modules"] == ["helper_then.py", "mine_then.py"]
    assert said["in_place"] == ["finds_then.py"]
    assert len(said.get("commit", "0" * 40)) == 40
    code = Path(said["path"])
    assert (code / "ima_dist" / "train.py").exists()
    assert not list(code.rglob("__pycache__"))
    Path("helper_then.py").write_text("SAID = 'now'\n")
    lines = snapshot.exports(said["path"], tmp_path)
    show = "import ima_dist, mine_then, helper_then as h, finds_then as f; print(h.SAID, ima_dist.__file__, f.HERE)"
    words = "\n".join([*lines, f'{sys.executable} -c "{show}"'])
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout.split() == ["then", str(code / "ima_dist" / "__init__.py"), str(tmp_path / "finds_then.py")], (
        done
    )


def test_the_script_says_where_its_code_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(ROOT / "jobs" / "moons.yaml"), "--partition", "v100", "--dry-run"]
    assert submit.main(words) == 0
    assert f"export IMA_DIST_CODE={tmp_path}/runs/cluster/moons/code\n" in capsys.readouterr().out
    assert submit.main([*words, "--no-snapshot"]) == 0
    assert "IMA_DIST_CODE" not in capsys.readouterr().out
    # After the site's own lines, which may set PYTHONPATH.
    partition = choose("v100", setup=["module load x"])
    text = sbatch.job_script(partition, 1, "t", tmp_path, 1, 1, exports=snapshot.exports("/code", tmp_path))
    assert text.index("module load x") < text.index("PYTHONPATH=") < text.index("srun")
