"""What sbatch is asked for: directives given, replaced and left out, and GPUs in all of SLURM's ways."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from cluster import directives, partitions, ray_node, ready, sbatch, submit
from cluster.reasons import words_of
from ima_dist.config.errors import ConfigError
from ima_dist.data.prepared import MANIFEST
from tests.support.commands import ROOT

JOB = ROOT / "jobs" / "table02.yaml"
OWN = "[site]\ncards = 4\ncpus_per_card = 2\ntime = 60\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def asked(capsys, entries: str, *words: str) -> dict[str, str]:
    """The directives of a job on a partition with these entries."""
    Path("partitions.toml").write_text(OWN + entries)
    status = submit.main([str(JOB), "--partition", "site", "--rows", "ima", "--dry-run", *words])
    out, err = capsys.readouterr()
    assert status == 0, err
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", out, re.MULTILINE))


@pytest.mark.parametrize(
    ("given", "nodes", "count"),
    [
        ({"gres": "gpu:v100:4"}, 2, 4),
        ({"gres": "gpu"}, 1, 1),
        ({"gres": "gpu:1g.5gb:2,nvme:1"}, 1, 2),
        ({"gres": "nvme:1"}, 1, 0),
        ({"gres": "shard:40"}, 1, 1),
        ({"gpus-per-node": "v100:2"}, 3, 2),
        ({"gpus-per-task": "2"}, 1, 2),
        ({"gpus-per-socket": "2", "sockets-per-node": "2"}, 1, 4),
        ({"gpus": "a100:6,v100:2"}, 4, 2),
        ({"tres-per-node": "gres/gpu=3"}, 1, 3),
        ({"tres-per-task": "cpu=4,gres/gpu:v100=3"}, 1, 3),
        ({"tres-per-job": "gres:gpu:8"}, 2, 4),
        ({"gpus": "4", "gpus-per-node": "2"}, 2, 2),
        ({"mem": "4G"}, 1, 0),
    ],
)
def test_gpus_in_all_of_slurms_ways(given, nodes, count):
    assert directives.gpus(given, nodes) == count


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"gpus": "6"}, "gives 4 nodes no equal number of GPUs"),
        ({"gpus-per-socket": "2"}, "give --gpus-per-node instead"),
        ({"gpus-per-node": "v100:two"}, "'v100:two' is not a number of GPUs"),
        ({"gres": "gpu:v100:2", "gpus-per-node": "4"}, "ask for different numbers of GPUs"),
    ],
)
def test_gpus_that_cannot_be_told_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        directives.gpus(given, 4)


def test_a_request_for_gpus_means_cuda(tmp_path):
    Path("partitions.toml").write_text(
        f'{OWN}sbatch = {{gpus_per_node = "v100:2"}}\ncompute_capability = "7.0"\n[v100]\nsbatch = {{gpus = 8}}\n'
    )
    planned = submit.plan(JOB, "site", nodes=2, rows=["ima"])
    assert planned.rows[0].command[-2:] == ["--device", "cuda"]
    assert (planned.partition.cards, planned.partition.asked(2)["cpus-per-task"]) == (2, "4")
    with pytest.raises(ConfigError, match="no bfloat16"):
        submit.plan(JOB, "site", options={"autocast": "bfloat16"})
    # It takes the place of the package's gres.
    v100 = submit.plan(JOB, "v100", nodes=4)
    assert (v100.partition.cards, v100.partition.asked(4).get("gres")) == (2, None)
    with pytest.raises(ConfigError, match="--cards 4 was given, but sbatch is asked for 2 GPUs"):
        submit.plan(JOB, "site", cards=4)
    Path("partitions.toml").write_text(OWN)
    assert submit.plan(JOB, "site").rows[0].command[-1] == "cpu"
    # Some sites give whole nodes and have no GPUs in SLURM: nothing but the option says that they are there.
    Path("partitions.toml").write_text(f'{OWN}compute_capability = "7.5"\n')
    assert submit.plan(JOB, "site", options={"device": "cuda"}).rows[0].command[-1] == "cuda"
    with pytest.raises(ConfigError, match="no bfloat16"):
        submit.plan(JOB, "site", options={"device": "cuda", "autocast": "bfloat16"})
    assert submit.plan(JOB, "site", options={"autocast": "bfloat16"}).rows[0].command[-1] == "cpu"


def test_cards_that_nobody_asks_for(monkeypatch):
    Path("partitions.toml").write_text(OWN)
    offers = "(null)\ngpu:v100:4(S:0-1)\n"
    monkeypatch.setattr(ready.slurm, "command", lambda *words: offers)
    for options in ({}, {"device": "cuda"}):
        with pytest.raises(ConfigError, match=r"The nodes of partition site have GPUs .gpu:v100:4.*, but none is"):
            ready.check_gpus(submit.plan(JOB, "site", options=options))
    ready.check_gpus(submit.plan(JOB, "site", options={"device": "cpu"}))
    offers = "(null)\n"
    ready.check_gpus(submit.plan(JOB, "site"))


def test_every_directive_can_be_given_replaced_and_left_out(capsys):
    entries = (
        'gres = "gpu:a"\nmemory = "10G"\nqos = "normal"\npartition = ""\n'
        'sbatch = {requeue = false, export = "NONE", mail_type = "END", mem-per-cpu = "2G", exclusive = true}\n'
    )
    found = asked(capsys, entries)
    assert not {"partition", "requeue", "mem"} & set(found)
    assert (found["export"], found["mail-type"], found["mem-per-cpu"], found["exclusive"]) == ("NONE", "END", "2G", "")
    assert (found["gres"], found["qos"], found["time"]) == ("gpu:a:4", "normal", "60")
    words = [
        "mem=",
        "mail-type=",
        "dependency=afterok:7",
        "p=gpu2",
        "qos=long",
        "signal=",
        "time=",
        "nodelist=n1",
        "x=n2",
    ]
    found = asked(capsys, entries, *(word for key in words for word in ("--sbatch", key)), "--sbatch", "no-requeue")
    assert not {"mail-type", "signal", "time", "mem"} & set(found)
    assert (found["dependency"], found["partition"], found["qos"], found["exclude"]) == (
        "afterok:7",
        "gpu2",
        "long",
        "n2",
    )
    assert "no-requeue" in found
    found = asked(capsys, 'memory = "10G"\n', "--sbatch", "mem=")
    assert not {"mem", "mem-per-cpu"} & set(found)
    assert "cpus-per-task" not in asked(capsys, 'gres = "gpu:a"\n', "--sbatch", "cpus-per-gpu=3")
    assert "memory" not in asked(capsys, 'memory = ""\nreservation = ""\n')


def test_the_documented_sites(capsys):
    """Each file of docs/sites.md is complete, asks for its GPUs, and leaves out what such a site refuses."""
    files = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "sites.md").read_text(), re.DOTALL)
    refused = {"gpu": {"gpus-per-node"}, "boost": {"gres", "mem"}, "whole": {"gres"}, "long": {"mem", "gpus-per-node"}}
    assert len(files) == len(refused)
    for text in files:
        Path("partitions.toml").write_text(text)
        (name,) = set(partitions.load()) - {"v100", "titanv"}
        planned = submit.plan(JOB, name, nodes=2, rows=["ima"])
        assert planned.partition.gpus(2) == planned.partition.cards == 4
        assert planned.rows[0].command[-1] == "cuda"
        assert not refused[name] & set(planned.partition.asked(2))


def test_an_entry_of_the_package_can_be_unset(capsys):
    Path("partitions.toml").write_text('[v100]\nmemory = ""\ngres = ""\nsbatch = {mem-per-cpu = "4G"}\n')
    given = partitions.choose("v100").asked(1)
    assert given["mem-per-cpu"] == "4G"
    assert not {"mem", "gres"} & set(given)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nodes=3", "sbatch's --nodes cannot be set in this way: use --nodes"),
        ("N=3", "use --nodes"),
        ("array=", "use --rows and --at-once"),
        ("time=10", "use --time, or time in partitions.toml"),
        ("signal=USR1@60", "set notice in partitions.toml"),
        ("Y=3", "'Y' is not an option of sbatch"),
    ],
)
def test_directives_that_are_the_submissions_own(word, sentence, capsys):
    assert submit.main([str(JOB), "--partition", "v100", "--dry-run", "--sbatch", word]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_the_environment_for_sbatch():
    inside = {
        "SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "100", "SBATCH_GPUS": "1", "SLURM_CONF": "c", "SLURM_CLUSTERS": "k",
        "PATH": "p",
    }  # fmt: skip
    assert sbatch.clean_environment(inside) == {"SLURM_CONF": "c", "SLURM_CLUSTERS": "k", "PATH": "p"}
    outside = {"SBATCH_ACCOUNT": "lab", "SLURM_CONF": "c"}
    assert sbatch.clean_environment(outside) == outside


def run_script(tmp_path: Path, command: str, refusals: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job's batch script with a srun that runs its words here, and a scontrol that refuses so many times."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "refusals").write_text("x\n" * refusals)
    (tmp_path / "command").write_text(f"#!/bin/sh\n{command}\n")
    programs = {
        "srun": 'while [ "$1" != -u ]; do shift; done; shift; "$@"',
        "sleep": "true",
        "scontrol": f"cd {tmp_path}; echo $* >> asked; grep -q x refusals || exit 0; sed -i 1d refusals; exit 1",
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    partition = partitions.choose("v100", python="python")
    text = sbatch.script({}, partition, tmp_path, f"sh {tmp_path}/command", "log", ["export X=1"])
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", **environment}
    return subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, timeout=60)


def test_the_batch_script_requeues_for_a_run_that_cannot(tmp_path):
    """As in a container without scontrol; if SLURM refuses for good, the row has a true result."""
    (tmp_path / "ima").mkdir()
    (tmp_path / "ima" / "refused.json").write_text("{}")
    ask = "echo ima > $IMA_DIST_REQUEUE_FILE; exit 3"
    element = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "4"}
    assert run_script(tmp_path, "exit 3", 0).returncode == 3
    assert not (tmp_path / "asked").exists()
    assert run_script(tmp_path, ask, 2, **element).returncode == 0
    assert (tmp_path / "asked").read_text() == "requeue 9_4\n" * 3
    assert not (tmp_path / "ima" / "result.json").exists()
    assert run_script(tmp_path, ask, 99).returncode == 3
    assert (tmp_path / "ima" / "result.json").exists()


@pytest.mark.parametrize(
    ("visible", "slices"), [("", 0), ("0,1", 0), ("MIG-1b2c,MIG-3d4e", 2), ("MIG-GPU-8a/1/0", 1), ("GPU-8a", 0)]
)
def test_slices_of_cards_are_counted_as_cuda_does(visible, slices):
    assert ray_node.mig_slices(visible) == slices


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("None", "SLURM has not looked at it yet"),
        ("Resources", "waits for free nodes (Resources)"),
        ("DependencyNeverSatisfied", "can never start, because a job that it depends on has failed: cancel it"),
        ("JobHeldUser", "is held: scontrol release 12_3"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "down, drained or reserved for maintenance"),
        ("QOSMaxGRESPerUser", "the QOS limits the GPUs of each user at a time"),
        ("AssocGrpCPUMinutesLimit", "the account's budget (CPUs) is used up"),
        ("QOSMaxWallDurationPerJobLimit", "asks for more time than the QOS allows one job"),
        ("AssocMaxJobsLimit", "waits until other jobs end: the account limits the jobs of each user"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_reasons_as_people_say_them(reason, words):
    assert words in words_of(reason, "12_3")


def test_data_are_looked_for_before_the_job(tmp_path, capsys):
    words = [str(JOB), "--partition", "v100", "--dry-run", "--data.dir"]
    assert submit.main([*words, "nowhere"]) == 2
    assert "nowhere: there is no such directory here" in capsys.readouterr().err
    assert submit.main([*words, "$TMPDIR/images"]) == 0
    assert submit.main([*words, str(tmp_path)]) == 0
    with pytest.raises(ConfigError, match=r"is in none of|is missing"):
        ready.check_data(submit.plan(JOB, "v100", options={"data.dir": str(tmp_path)}))
    (tmp_path / MANIFEST).touch()
    ready.check_data(submit.plan(JOB, "v100", options={"data.dir": str(tmp_path)}))
    ready.check_data(submit.plan(JOB, "v100", options={"data.dir": "$TMPDIR/images"}))
