"""``python -m benchmarks.sites [NAME …]``: try the files of docs/sites.md on a local SLURM with such sites' rules.

Under each file a job on two nodes is trained, and its time limit strikes twice. What the sites demand is imposed by
SLURM's own filters in Lua, by the partitions, and by stand-ins for modules and apptainer. The files are used as they
are, but for the directory of scratch, the network, and the CPUs that this machine lacks. Needs the Debian packages
slurm-wlm and munge; slurmdbd and mariadb-server for accounts. Prints a line per site; exit status 1 if a job did not
end well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import accounting
from cluster import local, slurm
from cluster.records import RowRecord
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_json

ROOT = Path(__file__).parent.parent
_SCRATCH = "/scratch/slurm_tmpdir"
_CARDS, _MEMORY = 4, 500_000
_WAIT = 900.0
_STEPS = 40
# What sbatch has been given is known only where sbatch runs: gres and gpus-per-node look alike to the controller.
_CLI_FILTER = """\
local rules = {
    gpu = {needs = {"gres", "mem"}, refuses = {"gpus", "gpus-per-node", "gpus-per-task"}},
    boost_usr_prod = {needs = {"gpus-per-node", "account", "qos"}, refuses = {"gres", "mem", "mem-per-cpu"}},
    dgx = {needs = {"gpus-per-node"}, refuses = {"gres"}, exactly = {exclusive = "exclusive"}},
    accelerated = {needs = {"gres", "mem-per-cpu"}, refuses = {"mem"}, exactly = {export = "NONE"}},
}
function slurm_cli_setup_defaults(options, early) return slurm.SUCCESS end
function slurm_cli_post_submit(offset, job, step) return slurm.SUCCESS end
function slurm_cli_pre_submit(options, offset)
    local rule = rules[options["partition"]]
    if options["type"] ~= "sbatch" or rule == nil then return slurm.SUCCESS end
    local faults = {}
    for _, name in ipairs(rule.needs) do
        if options[name] == nil then table.insert(faults, "--" .. name .. " is missing") end
    end
    for _, name in ipairs(rule.refuses) do
        if options[name] ~= nil then table.insert(faults, "--" .. name .. " is not allowed") end
    end
    for name, value in pairs(rule.exactly or {}) do
        if options[name] ~= value then table.insert(faults, "--" .. name .. " must be " .. value) end
    end
    if #faults == 0 then return slurm.SUCCESS end
    slurm.log_error("%s", "this site: " .. table.concat(faults, "; "))
    return slurm.ERROR
end
"""
_JOB_SUBMIT = """\
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
function slurm_job_submit(job, partitions, user)
    if job.partition == "boost_usr_prod" and (job.account ~= "lab42" or job.qos ~= "normal") then
        slurm.log_user("this site: you have no such account or QOS")
        return 2045  -- ESLURM_INVALID_ACCOUNT
    end
    return slurm.SUCCESS
end
"""
_PARTITIONS = """\
CliFilterPlugins=lua
JobSubmitPlugins=lua
PartitionName=gpu Nodes=v100-[0-2] MaxTime=1-0
PartitionName=boost_usr_prod Nodes=v100-[0-2] MaxTime=1-0 DefMemPerGPU=8000
PartitionName=dgx Nodes=v100-[0-2] MaxTime=1-0 OverSubscribe=EXCLUSIVE
PartitionName=accelerated Nodes=v100-[0-2] MaxTime=2-0
"""
_MODULES = """\
module() {{
    case "$*" in
    purge) PATH=/usr/bin:/bin ;;
    "load python/3.11 cuda/12.6") ;;
    "load apptainer") PATH={programs}:$PATH ;;
    *) echo "module $*: there is no such module" >&2; return 1 ;;
    esac
}}
"""
# Without SLURM's commands, as in most images.
_APPTAINER = """\
#!/bin/sh
[ "$1 $2 $3 $4 $5 $6" = "exec --nv --bind /lustre image.sif python" ] || exit 64
shift 6
PATH={inside} exec {python} "$@"
"""
_NETWORK = """\
import os
import time
from torch import nn

class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep(0.15 * (self.training and os.path.exists({pace!r})))
        return super().forward(x)

def build(num_classes, input_shape):
    return Slow(nn.Linear(input_shape[0], 16), nn.Tanh(), nn.Linear(16, num_classes))
"""
_JOB = f"""\
title: t
preset: moons
options:
  model.factory: mine:build
  data.subset: {32 * _STEPS}
  batch_size: 32
  epochs: 12
  eval.steps: 2
  eval.noise: [0.0, 0.1]
rows:
  ima: {{method: ima}}
"""


def files() -> dict[str, str]:
    """The files of docs/sites.md, by the name of their partition."""
    texts = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "sites.md").read_text(), re.DOTALL)
    return {text[1 : text.index("]")]: text for text in texts}


def prepare(directory: Path) -> None:
    """Give a local SLURM (``local.up``) the sites' nodes, partitions and rules; v100 and titanv stay."""
    conf, gres = directory / "slurm.conf", directory / "gres.conf"
    nodes, cards = f"RealMemory={_MEMORY} Gres=gpu:v100:{_CARDS},gpu:a100:{_CARDS}", []
    conf.write_text(re.sub(r"RealMemory=\d+ Gres=gpu:v100:\d+", nodes, conf.read_text()) + _PARTITIONS)
    for name in local.node_names():
        for kind in ("v100", "a100") if name.startswith("v100") else ():
            for n in range(_CARDS):
                file = directory / f"{name}.{kind}{n}"
                file.touch()
                cards.append(f"NodeName={name} Name=gpu Type={kind} File={file}\n")
    others = [line for line in gres.read_text().splitlines(keepends=True) if "Type=v100" not in line]
    gres.write_text("".join(others + cards))
    (directory / "cli_filter.lua").write_text(_CLI_FILTER)
    (directory / "job_submit.lua").write_text(_JOB_SUBMIT)


def container(place: Path) -> Path:
    """A directory of the system's programs without SLURM's."""
    inside = place / "inside"
    if not inside.exists():
        inside.mkdir()
        for program in os.scandir("/usr/bin"):
            if not program.name.startswith(("scontrol", "squeue", "sinfo", "sbatch", "srun", "scancel")):
                (inside / program.name).symlink_to(program.path)
    return inside


def furnish(place: Path) -> dict[str, str]:
    """Write the sites' files (NAME.toml), a job and what the site provides; the variables of a user there."""
    scratch = place / ("scratch-" + "x" * 90)
    for name, text in files().items():
        # Where the nodes are one machine, their names have no addresses, and in a container SLURM cannot tell them.
        (place / f"{name}.toml").write_text(f'{text.replace(_SCRATCH, str(scratch))}interface = "lo"\n')
    scratch.mkdir()
    (place / "home").mkdir()
    (place / "home" / "ima").symlink_to(sys.prefix)
    programs = place / "programs"
    programs.mkdir()
    (programs / "apptainer").write_text(_APPTAINER.format(inside=container(place), python=sys.executable))
    (programs / "apptainer").chmod(0o755)
    (place / "modules.sh").write_text(_MODULES.format(programs=programs))
    (place / "mine.py").write_text(_NETWORK.format(pace=str(place / "slowly")))
    (place / "job.yaml").write_text(_JOB)
    return {"HOME": str(place / "home"), "BASH_ENV": str(place / "modules.sh")}


def words(name: str) -> list[str]:
    """The options of a submission to a site. This machine's nodes have two CPUs."""
    return ["job.yaml", "--partitions", f"{name}.toml", "--partition", name, "--nodes", "2", "--device", "cpu",
            "--workers", "2", "--out", f"runs/{name}", "--sbatch", "cpus-per-task=2"]  # fmt: skip


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + _WAIT
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {_WAIT:.0f} s for {what}")
        time.sleep(0.5)


def _limit(job: str, minutes: int) -> None:
    slurm.command("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


def try_site(name: str, place: Path) -> str:
    """Train the job under a site's file, let its time limit strike twice; how it ended. Raises TimeoutError."""
    (place / "slowly").touch()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.submit", *words(name)], cwd=place, capture_output=True, text=True
    )
    if done.returncode:
        return f"not submitted: {done.stderr.strip()}"
    folder = place / "runs" / "cluster" / done.stdout.split(":")[0]
    (row,) = (read_json(folder / "job.json") or {})["rows"]
    job, run, record = row["id"], Path(row["run"]), RowRecord(folder, row["name"])
    notice = int(re.findall(r"^notice = (\d+)", files()[name], re.MULTILINE)[0]) if "notice" in files()[name] else 180

    def trains(start: int) -> bool:
        progress = {}
        with contextlib.suppress(ConfigError):
            progress = read_json(run / "progress.json") or {}
        times = read_json(record.start(start) / "times.json") or {}
        return record.result() is not None or (
            "first_step" in times and progress.get("stage") == "training" and 0 < progress.get("step", 0) < _STEPS
        )

    for start in (0, 1):
        _wait_for(lambda start=start: trains(start), f"start {start} to train")  # type: ignore[misc]
        hours, minutes, _ = slurm.job(job)["RunTime"].split(":")
        _limit(job, 60 * int(hours) + int(minutes) + -(-notice // 60))
        _wait_for(lambda start=start: record.newest_start() > start or record.result() is not None, "the time limit")  # type: ignore[misc]
        _limit(job, 60)
    (place / "slowly").unlink()
    _wait_for(lambda: record.result() is not None and job not in slurm.queue(), "the end")
    result, output = record.result() or {}, record.output.read_text()
    strikes, starts = output.count("SIGUSR2: the run saves its state"), record.newest_start() + 1
    left = list(place.glob("scratch-*/*"))
    if result.get("status") != 0 or strikes != 2 or starts != 3 or left:
        return f"status {result.get('status')}, {strikes} strikes, {starts} starts, left: {left}; see {record.output}"
    return ""


@contextlib.contextmanager
def _slurm(directory: Path) -> Iterator[None]:
    """A local SLURM with the sites' rules; with accounting, where there is a slurmdbd."""
    lacking = accounting.missing()
    with contextlib.ExitStack() as stack:
        start_accounting = None if lacking else stack.enter_context(accounting.accounting())

        def change(place: Path) -> None:
            prepare(place)
            if start_accounting is not None:
                start_accounting(place)

        local.up(directory, prepare=change)
        stack.callback(local.down, directory)
        os.environ.update(local.environment(directory), PYTHONPATH=str(ROOT))
        if lacking:
            print(f"without accounting: {', '.join(lacking)} missing", flush=True)
        else:
            accounting.allow("lab42", "normal", MaxSubmitJobsPerUser=2)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(files()), help=", ".join(files()))
    names = parser.parse_args().names
    place = Path(tempfile.mkdtemp(prefix="sites-"))
    faults = []
    with _slurm(Path(f"/tmp/slurm-sites-{os.getpid()}")):
        os.environ.update(furnish(place))
        for name in names:
            began = time.monotonic()
            try:
                faults.append(try_site(name, place))
            except TimeoutError as error:
                faults.append(f"{error}; see {place}")
            print(f"{name}: {faults[-1] or 'ended well, after its time limit had struck twice'}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    if not any(faults):
        shutil.rmtree(place)
    return int(any(faults))


if __name__ == "__main__":
    sys.exit(main())
