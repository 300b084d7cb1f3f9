"""Jobs on a local SLURM under rules that real centres have: what sbatch is told, and where jobs run."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import sites
from cluster import slurm, status, submit
from cluster.records import RowRecord
from ima_dist.rundir.files import read_json
from tests.support import commands
from tests.support.slurm import LEAVES_WITHIN, local_slurm, needs_slurm, seconds_to_leave, training
from tests.support.web import unreachable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_slurm]
STEPS, EPOCHS, WAIT = 40, 6, 600
NETWORK = """\
import time
from torch import nn

class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep(0.1 * self.training)
        return super().forward(x)

def build(num_classes, input_shape):
    return Slow(nn.Linear(input_shape[0], 16), nn.Tanh(), nn.Linear(16, num_classes))
"""
# No gres and no memory of a node; no environment of the submission; a container without SLURM's commands; scratch
# per job under a long path; an MLflow behind a firewall that drops packets.
SITE = """\
[site]
partition = "titanv"
cards = 1
cpus_per_card = 1
time = "0:30:00"
notice = 30
setup = ["export SITE_SCRATCH={scratch}/$SLURM_JOB_ID MLFLOW_TRACKING_URI={mlflow}"]
python = {python}
temp = "$SITE_SCRATCH"
sbatch = {{gpus-per-node = "titanv:1", mem-per-cpu = "1500M", export = "NONE", comment = "a site's"}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory to submit from, inside an allocation, with a local SLURM that has a directory of its own."""
    place = tmp_path_factory.mktemp("jobs")
    directory = Path(f"/tmp/slurm-sites-{os.getpid()}")
    with local_slurm(directory, place, sites.prepare), unreachable() as mlflow:
        sites.furnish(place)
        (scratch,) = place.glob("scratch-*")
        container = place / "container"
        inside = sites.container(place)
        container.write_text(f'#!/bin/bash\nPATH={inside} exec {shlex.quote(sys.executable)} "$@"\n')
        container.chmod(0o755)
        Path("partitions.toml").write_text(SITE.format(scratch=scratch, python=repr(str(container)), mlflow=mlflow))
        Path("mine.py").write_text(NETWORK)
        options = {
            "model.factory": "mine:build", "data.subset": 1280, "batch_size": 32, "epochs": EPOCHS, "eval.steps": 2,
            "eval.noise": [0.0, 0.1],
        }  # fmt: skip
        lines = "".join(f"  {name}: {value}\n" for name, value in options.items())
        Path("job.yaml").write_text(f"title: t\npreset: moons\noptions:\n{lines}rows:\n  ce: {{method: ce}}\n")
        yield place


def submitted(*words: str, **environment: str) -> tuple[Path, dict[str, str]]:
    """Folder and row of a submission of the job."""
    done = commands.run("cluster.submit", "job.yaml", "--partition", "site", "--device", "cpu", *words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path("runs/cluster", done.stdout.split(":")[0]).absolute()
    (row,) = (read_json(folder / "job.json") or {})["rows"]
    return folder, row


def said(record: RowRecord) -> str:
    files = [record.output, *record.path.glob("start-*/ray-*.log")]
    return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in files)


def test_a_site_with_rules_of_its_own(place):
    """Submitted inside an allocation; the checkout changes; the time limit comes in mid-training, without scontrol."""
    inherited = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "99999999", "SBATCH_GRES": "gpu:nosuch:9"}
    folder, row = submitted(**inherited)
    record = RowRecord(folder, "ce")
    Path("mine.py").write_text("raise SystemExit('changed after the submission')\n")
    asked = slurm.job(row["id"])
    assert (asked["MinMemoryCPU"], asked["TresPerNode"]) == ("1500M", "gres:gpu:titanv:1")

    def in_training() -> bool:
        assert record.result() is None, said(record)
        return training(record, row["run"], 0, STEPS)

    commands.wait_for(in_training, WAIT, "the run to train")
    ray = (record.start(0) / "ray-0.log").read_text()
    assert "Ray runtime started" in ray
    elapsed = slurm.job(row["id"])["RunTime"]
    slurm.command("scontrol", "update", f"JobId={row['id']}", f"TimeLimit={int(elapsed.split(':')[1]) + 1}")
    assert seconds_to_leave(record, 0, "[cluster] SIG", WAIT) < LEAVES_WITHIN
    assert "warning: not recorded: " in record.output.read_text()
    commands.wait_for(lambda: record.newest_start() == 1 or record.result(), WAIT, "the second start")
    slurm.command("scontrol", "update", f"JobId={row['id']}", "TimeLimit=30")
    (result,) = submit.wait(folder, ask_every=2.0).values()
    output = record.output.read_text()
    assert result["status"] == 0, said(record)
    assert "there is no scontrol here, so the job's batch script asks SLURM to requeue it" in output
    assert not list(place.glob("scratch-*/*")), "scratch is left"
    code = (read_json(folder / "job.json") or {})["code"]
    assert code["modules"] == ["mine.py"]
    assert (Path(code["path"]) / "cluster" / "task.py").exists()


def test_a_job_that_is_cancelled_while_it_waits(place, monkeypatch, capsys):
    Path("mine.py").write_text(NETWORK)
    folder, row = submitted("--sbatch", "begin=now+1hour", "--no-snapshot")
    assert status.main([folder.name]) == 0
    assert re.search("PENDING .* starts later", capsys.readouterr().out)
    slurm.command("scancel", row["id"])
    commands.wait_for(lambda: row["id"] not in slurm.queue(), 60, "the job to leave the queue")
    assert status.main([folder.name, "--watch"]) == 0
    assert "CANCELLED" in capsys.readouterr().out
    assert submit.wait(folder)["ce"]["message"] == "cancelled"


def test_cards_that_are_there_but_not_asked_for(place):
    done = commands.run("cluster.submit", "job.yaml", "--partition", "site", "--sbatch", "gpus-per-node=")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "The nodes of partition titanv have GPUs (gpu:titanv:2), but none is asked for" in done.stderr


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        ("gpu", "gpus-per-node=4", "--gres is missing; --gpus-per-node is not allowed"),
        ("boost", "gres=gpu:4", "this site: --gres is not allowed"),
        ("boost", "account=lab43", "you have no such account or QOS"),
        ("whole", "exclusive=", "--exclusive must be exclusive"),
        ("long", "export=", "--export must be NONE"),
        ("long", "mem-per-cpu=", "--mem-per-cpu is missing"),
    ],
)
def test_the_documented_sites_take_their_files(place, name, wrong, sentence, capsys):
    """SLURM takes a job of two nodes from each file, and refuses what such a site refuses.

    ``python -m benchmarks.sites`` runs these jobs.
    """
    words = [*sites.words(name), "--no-snapshot", "--sbatch", "begin=now+1hour"]
    assert submit.main([*words, "--sbatch", wrong]) == 2
    error = capsys.readouterr().err
    assert (sentence in error, error.count("\n")) == (True, 1), error
    assert submit.main(words) == 0
    folder = Path("runs/cluster", capsys.readouterr().out.split(":")[0])
    (row,) = (read_json(folder / "job.json") or {})["rows"]
    asked = slurm.job(row["id"])
    assert (asked["JobState"], asked["NumNodes"]) == ("PENDING", "2-2")
    assert re.search(r"gpu(:\w+)?:4$", asked["TresPerNode"])
    slurm.command("scancel", row["id"])
