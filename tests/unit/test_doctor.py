"""Every check of the doctor, made to fail."""

from __future__ import annotations

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from cluster import checks, doctor, ray_node, slurm
from cluster.checks import FAILURE, OK, WARNING, Finding, run_check
from cluster.partitions import Partition
from ima_dist.launch import temporary

V100 = Partition(
    name="v100", partition="v100", cards=2, cpus_per_card=4, time=600, gres="gpu:v100", memory="40G",
    compute_capability="7.0",
)  # fmt: skip
NODES = "sinfo --noheader --Node -p v100"
SHOWN = "scontrol --oneliner show partition v100"
ANSWERS = {
    "sinfo --version": "slurm 22.05.8\n",
    "scontrol ping": "Slurmctld(primary) at node1 is UP\n",
    SHOWN: "PartitionName=v100 MaxTime=1-00:00:00 PreemptMode=REQUEUE State=UP TotalNodes=2",
    NODES: "n1|gpu:v100:4(S:0-1)|32|180000|idle\nn2|gpu:v100:4|32|180000|down*\n",
    "sinfo --noheader --format=%R": "titanv\nv100\n",
    "scontrol show config": "KillWait                = 30 sec\n",
    "sacct --": "",
    "scontrol --oneliner show node": "NodeName=n2 NodeAddr=127.0.0.1",
}


@pytest.fixture
def answers(monkeypatch):
    """A SLURM that gives these answers; an error where a value is None."""
    given = dict(ANSWERS)

    def command(*words):
        line = " ".join(words)
        for start, text in given.items():
            if line.startswith(start):
                if text is None:
                    break
                return text
        raise slurm.ConfigError(f"{line}: refused.")

    monkeypatch.setattr(slurm, "command", command)
    return given


def levels(partition, directory):
    return {f.check: f for f in doctor.login_findings(partition, directory)}


def test_all_is_well(answers, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_50 sm_70 sm_80", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    found = levels(V100, tmp_path)
    assert {f.level for name, f in found.items() if name != "disk space"} == {OK}, found
    assert list(found) == [
        "SLURM", "accounting", "grace", "partition", "cards", "limits", "directory", "disk space", "clock",
        "socket path", "ports", "torch",
    ]  # fmt: skip
    assert "1 of 2 nodes" in found["cards"].text


@pytest.mark.parametrize(
    ("answer", "text", "check", "level", "remedy"),
    [
        ("sinfo --version", None, "SLURM", FAILURE, "refused"),
        ("scontrol ping", "Slurmctld(primary) at node1 is DOWN\n", "SLURM", FAILURE, "no controller is up"),
        ("sacct --", None, "accounting", WARNING, "works without"),
        ("scontrol show config", "KillWait = 5 sec", "grace", WARNING, "--checkpoint-every"),
        (SHOWN, None, "partition", FAILURE, "it has titanv, v100: correct"),
        (SHOWN, "State=DOWN", "partition", FAILURE, "is DOWN"),
        (SHOWN, "State=UP MaxTime=1:00:00", "partition", FAILURE, "at most 1:00:00"),
        (NODES, "n1|(null)|32|180000|idle", "cards", FAILURE, "correct 'gres' or 'cards'"),
        (NODES, "n1|gpu:v100:1|32|180000|idle", "cards", FAILURE, "no node has gpu:v100:2"),
        (NODES, "n1|gpu:v100:2|4|180000|idle", "cards", FAILURE, "4 CPUs"),
        (NODES, "n1|gpu:v100:2|32|1000|idle", "cards", FAILURE, "asks for 8 and 40960"),
        (NODES, "n1|gpu:v100:2|32|180000|drained", "cards", WARNING, "down or drained"),
        ("scontrol show config", "MaxArraySize = 1001\n", "limits", OK, "arrays of up to 1001 rows"),
    ],
)  # fmt: skip
def test_slurm_that_is_not_as_described(answers, tmp_path, answer, text, check, level, remedy):
    answers[answer] = text
    found = levels(V100, tmp_path)[check]
    assert found.level == level
    assert remedy in found.text


def test_limits_of_a_qos(answers, tmp_path):
    partition = V100.model_copy(update={"qos": "long"})
    for text, level, remedy in (
        (None, OK, "not known: there is no accounting"),
        ("", FAILURE, "SLURM has no QOS long: correct 'qos' under [v100]"),
        ("10|4|1-00:00:00\n", OK, "QOS long: 10 jobs submitted at a time (the rest is held back); QOS long: 4 running"),
        ("||02:00:00\n", FAILURE, 'QOS long allows at most 02:00:00: set time = "02:00:00" under [v100]'),
    ):
        answers["sacctmgr"] = text
        found = levels(partition, tmp_path)["limits"]
        assert (found.level, remedy in found.text) == (level, True), found


def test_gpus_asked_for_in_another_way(answers, tmp_path):
    other = {"gres": None, "cards": 4}
    found = levels(V100.model_copy(update={**other, "sbatch": {"gpus-per-node": "v100:4"}}), tmp_path)["cards"]
    assert (found.level, found.text) == (OK, "1 of 2 nodes have gpu:v100:4 and are up")
    found = levels(V100.model_copy(update=other), tmp_path)["cards"]
    assert (found.level, "but none is asked for: set 'gres', or sbatch" in found.text) == (FAILURE, True)


def test_a_default_partition(answers, tmp_path):
    answers["sinfo --noheader --format=%P"] = "titanv\nv100*\n"
    answers["sinfo --noheader --Node --format"] = answers[NODES]
    assert levels(V100.model_copy(update={"partition": None}), tmp_path)["partition"].text.startswith("v100, 2 nodes")


@pytest.mark.parametrize(
    ("scontrol", "record", "level", "text"),
    [
        (True, "JobId=1 Requeue=1", OK, "may be requeued"),
        (True, "JobId=1 Requeue=0", FAILURE, "SLURM does not let these jobs be requeued"),
        (False, "", FAILURE, "load SLURM's module in 'setup'"),
    ],
)
def test_whether_jobs_may_be_requeued(scontrol, record, level, text):
    found = run_check("batch script", lambda: checks.batch_requeue(scontrol, record))
    assert (found.level, text in found.text) == (level, True)


def test_no_slurm_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.main(["--records", str(tmp_path), "--partition", "v100", "--on-node"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "failure  SLURM: The command sinfo is missing: run this on a login node of the SLURM cluster."


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    found = run_check("directory", lambda: checks.directory_writable(tmp_path / "file" / "below"))
    assert (found.level, "Not a directory" in found.text) == (FAILURE, True)


@pytest.mark.parametrize(("free", "level"), [(0, FAILURE), (5, WARNING), (100, OK)])
def test_full_disk(tmp_path, monkeypatch, free, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free * 2**30))
    found = run_check("disk space", lambda: checks.disk_space(tmp_path / "not" / "yet"))
    assert (found.level, str(tmp_path) in found.text) == (level, True)


def test_really_full_disk():
    found = run_check("disk space", lambda: checks.disk_space(Path("/proc")))
    assert found.level == FAILURE


def test_socket_path_too_long(tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    partition = V100.model_copy(update={"temp": str(long)})
    found = run_check("socket path", lambda: checks.socket_path(partition, on_node=True))
    assert (found.level, found.text) == (OK, f"a link in /tmp leads Ray to {long}")
    partition = V100.model_copy(update={"temp": "/proc/nobody"})
    found = run_check("socket path", lambda: checks.socket_path(partition, on_node=True))
    assert (found.level, "name another as temp in partitions.toml" in found.text) == (FAILURE, True)
    partition = V100.model_copy(update={"temp": "/scratch/$SLURM_JOB_ID"})
    assert run_check("socket path", lambda: checks.socket_path(partition)).level == OK


def test_room_for_sockets_is_enough():
    """A socket at the longest path that passes the check can be bound."""
    base = "/" + "x" * (temporary.SOCKET_PATH - temporary.ROOM_FOR_OURS - temporary.ROOM_FOR_RAY - 1)
    assert ray_node.fits(base)
    assert not ray_node.fits(base + "x")
    below = "/ima-12345678-abcdefgh/r/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store"
    assert len(base + below) <= temporary.SOCKET_PATH


def test_no_free_port(monkeypatch):
    class Taken(socket.socket):
        def bind(self, address):
            raise OSError("in use")

    monkeypatch.setattr(ray_node.socket, "socket", Taken)
    assert run_check("ports", checks.ports).level == FAILURE


@pytest.mark.parametrize(
    ("cuda", "flags", "capability", "level", "remedy"),
    [
        ("13.0", "sm_75 sm_80 sm_90 compute_120", "7.0", FAILURE, "constraints/volta.txt"),
        ("12.6", "sm_50 sm_60 sm_70 sm_75", "7.0", OK, "has code"),
        ("13.0", "sm_75 sm_80 sm_90", "8.6", OK, "has code"),
        ("13.0", "sm_75 sm_90", "8.0", FAILURE, "sm_80"),
        (None, None, "7.0", FAILURE, "CPUs only"),
        ("13.0", "sm_75", None, WARNING, "compute_capability is not set"),
    ],
)
def test_torch_for_other_cards(monkeypatch, cuda, flags, capability, level, remedy):
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: flags, raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = run_check("torch", lambda: checks.torch_fits(capability))
    assert (found.level, remedy in found.text) == (level, True)


def test_volta_constraints_name_a_torch_that_the_package_accepts():
    lines = (Path(doctor.__file__).parent.parent / "constraints" / "volta.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")][:2] == ["torch==2.7.1", "torchvision==0.22.1"]


def test_clocks_that_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.time, "time", lambda: os.stat(tmp_path).st_mtime + 3600)
    assert run_check("clock", lambda: checks.file_clock(tmp_path)).level == FAILURE
    assert checks.skew(10, "x")[0] == WARNING


def test_driver_and_cards(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi is missing" in run_check("driver", lambda: checks.driver_and_cards(1)).text
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla V100-SXM2-32GB, 560.35, 7.0'\n")
    program.chmod(0o755)
    assert run_check("driver", lambda: checks.driver_and_cards(1)).level == OK
    found = run_check("driver", lambda: checks.driver_and_cards(2))
    assert (found.level, "1 of 2 cards" in found.text) == (FAILURE, True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    assert run_check("driver", lambda: checks.driver_and_cards(2)).text.startswith("2 slices of Tesla V100")


def test_interface(answers):
    assert run_check("interface", lambda: checks.interface(None, None)) == Finding(OK, "interface", "lo (127.0.0.1)")
    found = run_check("interface", lambda: checks.interface(None, "ib7"))
    assert (found.level, "no interface 'ib7'" in found.text) == (FAILURE, True)
    found = run_check("interface", lambda: checks.interface("no-such-host.invalid", None))
    assert (found.level, "cannot reach" in found.text) == (FAILURE, True)


def test_directory_that_the_node_does_not_share(answers, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {f.check: f for f in doctor.node_findings(V100, tmp_path, ".probe-nobody", ["n2"])}
    assert found["shared directory"].level == FAILURE
    assert "submit from a directory that all nodes share" in found["shared directory"].text
    (tmp_path / ".probe-x").touch()
    found = {f.check: f for f in doctor.node_findings(V100, tmp_path, ".probe-x", ["n2"])}
    assert found["shared directory"].level == OK


def test_nodes_that_do_not_answer(tmp_path, monkeypatch):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 'sbatch: error: no node' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = doctor.on_nodes(V100, tmp_path, 2, None)
    assert [(f.level, f.text) for f in found] == [(FAILURE, "0 of 2 nodes answered: sbatch: error: no node")]
    assert not list(tmp_path.glob(".doctor*"))


def test_the_nodes_are_checked_as_jobs_run(tmp_path, monkeypatch):
    """With the partition's setup lines, python, words for srun and options of sbatch, and with a true answer."""
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncp $3 {tmp_path}/script; PATH={tmp_path}:$PATH bash $3\n")
    answer = '{"node": "n1", "time": 0, "findings": []}'
    (tmp_path / "srun").write_text(
        f'#!/bin/sh\necho $* > {tmp_path}/words\necho \'{answer}\' > "$(dirname "$3")/task-0.out"\n'
    )
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho JobId=1 Requeue=0\n")
    for name in ("sbatch", "srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    own = {"setup": ("module load x",), "python": "sitepython", "srun": ("--mpi=none",), "sbatch": {"account": "lab"}}
    found = {f.check: f for f in doctor.on_nodes(V100.model_copy(update=own), tmp_path, 1, None)}
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --account=lab\n" in script
    assert "#SBATCH --time=10\n" in script
    assert "\nmodule load x\n" in script
    assert "--mpi=none sitepython -u -m cluster.doctor --partition v100" in (tmp_path / "words").read_text()
    assert found["batch script"].level == FAILURE
    assert "nodes" not in found


def test_on_node_needs_a_partition(capsys):
    assert doctor.main(["--on-node"]) == 2
    assert capsys.readouterr().err == "error: --on-node needs --partition: say which nodes to check.\n"
