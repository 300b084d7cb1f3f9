"""How commands start and end: ``ima-dist``, exit statuses, signals."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ima_dist import __version__
from ima_dist.cli import main as console
from ima_dist.cli.entry import as_part, guarded, say_interrupted
from ima_dist.config.errors import DataNote


def test_help_lists_every_command_and_imports_none(tmp_path):
    code = (
        "import sys; from ima_dist.cli.main import COMMANDS, main; main(['--help']);"
        "print({'torch', 'ray', 'numpy', 'submitit', *(module for module, _ in COMMANDS.values())} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "set()"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(console.COMMANDS)


@pytest.mark.parametrize("command", console.COMMANDS)
def test_a_command_has_its_module_and_says_its_own_name(command, monkeypatch, capsys):
    module, _ = console.COMMANDS[command]
    assert importlib.util.find_spec(module)
    for started, name in (("/usr/bin/ima-dist", f"ima-dist {command}"), ("train.py", f"python -m {module}")):
        monkeypatch.setattr(sys, "argv", [started])
        with pytest.raises(SystemExit) as ended:
            console.main([command, "--help"])
        assert ended.value.code == 0
        usage = capsys.readouterr().out
        assert usage.startswith(f"usage: {name.removesuffix('.__main__')} ")


def test_version_and_unknown_commands(capsys):
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ima-dist {__version__}\n"
    assert console.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: Unknown command 'trian' (did you mean train?). See ima-dist --help.\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("resumable", [True, False])
def test_a_signal_is_75_only_where_there_is_something_to_continue(signum, resumable, capsys):
    def command(argv):
        os.kill(os.getpid(), signum)
        signal.pause()
        return 0

    assert guarded(command, [], resumable=resumable) == (75 if resumable else 128 + signum)
    again = " Run the same command again to continue." if resumable else ""
    assert capsys.readouterr().err == f"Stopped.{again}\n"


def test_a_signal_in_a_step_of_a_command_gives_one_advice(capsys):
    def step(argv):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
        return 0

    def command(argv):
        with as_part():
            say_interrupted("Continue with: the step")
            return guarded(step, [])

    assert guarded(command, [], resumable=True) == 75
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Stopped. Run the same command again to continue.\n")
    say_interrupted("Continue.")
    assert capsys.readouterr().out == "Interrupted. Continue.\n"


def test_a_signal_after_the_end_changes_no_status():
    """Python takes a while to unload what a command has imported."""
    code = (
        "import atexit, os, signal, sys; from ima_dist.cli.entry import guarded\n"
        "def command(argv):\n"
        "    atexit.register(lambda: [os.kill(os.getpid(), s) for s in (signal.SIGINT, signal.SIGTERM)])\n"
        "    return 75\n"
        "sys.exit(guarded(command, []))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")


def test_what_is_said_of_the_data_is_said_once_by_a_command(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    for _ in range(2):
        said: list[str] = []

        def command(argv, said=said):
            # Python itself shows a warning again after any use of catch_warnings.
            for text in ("odd values", "odd values", "odd labels"):
                said.append(warnings.formatwarning(DataNote(text), DataNote, "x.py", 1))
            return 0

        assert guarded(command, []) == 0
        assert said == ["note: odd values\n", "", "note: odd labels\n"]


def test_errors_of_the_system_name_the_file(capsys):
    assert guarded(lambda argv: len(Path("/nowhere/x").read_text()), []) == 1
    assert capsys.readouterr().err == "error: /nowhere/x: No such file or directory.\n"


def test_a_process_that_has_used_ray_ends_with_its_status_whatever_unloading_does():
    code = """
import atexit, os, sys
from ima_dist.cli.entry import leave
class Crashes:
    def __del__(self, abort=os.abort):
        abort()
crashes = Crashes()
atexit.register(print, "at exit")
print("said", end=" ")
leave(75)
"""
    found = [
        subprocess.run([sys.executable, "-c", used + code], capture_output=True, text=True)
        for used in ("", "import sys; sys.modules['ray'] = sys")
    ]
    assert [process.returncode for process in found] == [-6, 75]
    assert found[1].stdout == "said at exit\n"
