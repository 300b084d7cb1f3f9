"""Runs that are handed to a Ray cluster with ``ray job submit``, and what stands between them and strangers."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env import packaging, working_dir

from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support import commands
from tests.support.clusters import ADDRESS, RayCluster, ray_cluster
from tests.support.datafiles import write_cifar
from tests.support.runs import check_files

TRAIN = (sys.executable, "-m", "ima_dist.train")
STRANGER = "f" * 64
# Nobody wants to wait for more than this to be uploaded.
MEGABYTES = 8


def test_what_is_uploaded_is_small(tmp_path):
    """``--working-dir .`` sends the package alone: no environment, history, results or data."""
    checkout = tmp_path / "checkout"
    shutil.copytree(
        commands.ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "data", ".*_cache")
    )
    shutil.copytree(commands.ROOT / "ima_dist" / "data", checkout / "ima_dist" / "data", dirs_exist_ok=True)
    for name in (".venv/lib/big", ".git/objects/big", "runs/one/checkpoints/big", "data/cifar-10-batches-py/big"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(b"0123456789abcdef" * 65536)
    package = tmp_path / "_ray_pkg_test.zip"

    def pack(path: str, excludes: list[str], is_file: bool = False) -> None:
        packaging.create_package(path, package, include_gitignore=True, excludes=excludes)

    # What the client of ``ray job submit`` calls, with the function that would upload.
    working_dir.upload_working_dir_if_needed({"working_dir": str(checkout)}, include_gitignore=True, upload_fn=pack)
    with zipfile.ZipFile(package) as archive:
        names = {entry.filename for entry in archive.infolist() if not entry.is_dir()}
        assert sum(entry.file_size for entry in archive.infolist()) < MEGABYTES * 2**20
    assert package.stat().st_size < MEGABYTES * 2**20
    assert {"ima_dist/train.py", "ima_dist/data/cifar10.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith("/big")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with ray_cluster(home, cpus=2, jobs=True, IMA_DIST_HOME=str(home), SLOW_UNTIL=str(home / "fast")) as it:
        yield it


def home(cluster: RayCluster) -> Path:
    return Path(cluster.environment["IMA_DIST_HOME"])


def submit(cluster: RayCluster, name: str, *words: object, runtime_env: str = "{}") -> None:
    """Hand the checkout and a command of ``ima_dist.train`` to the cluster; does not wait."""
    # The job server answers before the node's agent that runs the jobs is there.
    for _ in range(60):
        done = cluster.ray(
            "job", "submit", "--no-wait", f"--submission-id={name}", f"--working-dir={commands.ROOT}",
            f"--runtime-env-json={runtime_env}", "--", *TRAIN, *map(str, words),
        )  # fmt: skip
        if "No available agent" not in done.stderr + done.stdout:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr


def status(cluster: RayCluster, name: str) -> str:
    """What ``ray job status`` would print, without a process that imports Ray."""
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    address = f"http://{ADDRESS}:{cluster.dashboard}/api/jobs/{name}"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())["status"]


def followed(cluster: RayCluster, name: str) -> str:
    """What the job has printed when it has ended."""
    text = logs(cluster, name, "--follow")
    # The stream closes a moment before the job counts as ended.
    commands.wait_for(lambda: status(cluster, name) != "RUNNING", 400, "the job to end")
    return text


def logs(cluster: RayCluster, name: str, *options: str) -> str:
    done = cluster.ray("job", "logs", name, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_strangers_are_refused(cluster, tmp_path):
    """With another cluster's token, or none: the job server, ``ray job submit`` and ``ima_dist.train`` alike."""
    wrong = tmp_path / "wrong"
    wrong.write_text(STRANGER)
    wrong.chmod(0o600)
    for headers, code in (({}, 401), ({"Authorization": f"Bearer {STRANGER}"}, 403)):
        request = urllib.request.Request(f"http://{ADDRESS}:{cluster.dashboard}/api/jobs/", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == code
    server = f"http://{ADDRESS}:{cluster.dashboard}"
    done = cluster.ray(
        "job", "submit", f"--address={server}", "--", "true", RAY_AUTH_TOKEN_PATH=str(wrong), RAY_ADDRESS=server
    )
    assert done.returncode != 0
    assert "Authentication failed" in done.stderr

    for token in (wrong, tmp_path / "absent"):
        environment = {**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONWARNINGS": ""}
        done = commands.run("ima_dist.train", "moons", "--data.subset", 100, "--out", tmp_path / "run", **environment)
        assert done.returncode == 2, done.stderr
        [sentence] = done.stderr.splitlines()
        assert sentence.startswith(f"error: The Ray cluster at {cluster.environment['RAY_ADDRESS']} requires its token")
        assert "RAY_AUTH_TOKEN_PATH" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_cifar10_as_a_job(cluster, tmp_path):
    """Files in the genuine format; results in a directory of the user's, not in Ray's temporary copy."""
    data = write_cifar(tmp_path / "data", 20)
    submit(
        cluster, "cifar", "cifar10", "--data.dir", data, "--data.subset", 20, "--epochs", 1, "--batch-size", 10,
        "--workers", 2, "--attack.steps", 1, "--attack.bisections", 1, "--eval.samples", 4, "--eval.steps", 1,
        "--eval.noise", "0,0.1", "--out", "results/cifar",
    )  # fmt: skip
    text = followed(cluster, "cifar")
    assert status(cluster, "cifar") == "SUCCEEDED", text
    run = RunDir(home(cluster) / "results" / "cifar")
    assert f"cifar10, ima, linf: 1 epoch on 2 CPU workers. Results: {run.path}" in text
    assert "Accuracy on the test set by noise level" in text
    check_files(run, epochs=1, samples=4)


@pytest.mark.slow
def test_a_stopped_job_can_be_continued(cluster):
    """``ray job stop`` leaves 3 s by default, which may be too few for a checkpoint, or as many as the job asks for."""
    run = RunDir(home(cluster) / "results" / "slow")
    options = (
        "moons", "--model.factory", "tests.support.user_code:slow", "--data.subset", 600, "--batch-size", 10,
        "--epochs", 3,
        "--margin-update", "online", "--attack.steps", 5, "--attack.bisections", 2, "--checkpoint-every", 20,
        "--eval.steps", 2, "--eval.noise", "0,0.1", "--workers", 2, "--out", "results/slow",
    )  # fmt: skip

    def progress() -> dict[str, Any]:
        return read_json(run.progress_path) or {}

    def steps() -> int:
        return progress().get("samples_done", 0) // 10

    submit(cluster, "first", *options)
    commands.wait_for(lambda: steps() > 25, 240, "the second checkpoint")
    assert status(cluster, "first") == "RUNNING"
    assert cluster.ray("job", "stop", "first").returncode == 0
    assert status(cluster, "first") == "STOPPED"
    assert "Stopping: saving a checkpoint first." in logs(cluster, "first")
    kept = steps()
    assert any(run.checkpoints_dir.glob("epoch=*"))

    patient = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "200"}}'
    submit(cluster, "second", "--resume", "results/slow", runtime_env=patient)
    commands.wait_for(lambda: progress().get("stage") == "training" and steps() > kept + 5, 240, "the second job")
    assert cluster.ray("job", "stop", "second").returncode == 0
    assert status(cluster, "second") == "STOPPED"
    text = logs(cluster, "second")
    assert f"Interrupted. Continue with: python -m ima_dist.train --resume {run.path}" in text
    assert run.status == "interrupted"
    # "epoch=0001-step=000030", or "epoch=0002" if the stop came at its end.
    saved = [[int(n) for n in re.findall(r"=(\d+)", path.name)] for path in run.checkpoints_dir.glob("epoch=*")]
    assert steps() <= max(60 * epoch + sum(step) for epoch, *step in saved)

    (home(cluster) / "fast").touch()
    submit(cluster, "third", "--resume", "results/slow")
    text = followed(cluster, "third")
    assert status(cluster, "third") == "SUCCEEDED", text
    check_files(run, epochs=3, samples=60)
