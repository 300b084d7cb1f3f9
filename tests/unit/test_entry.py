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
from ima_dist.cli.entry import guarded
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
@pytest.mark.parametrize(("resumable", "status"), [(True, 75), (False, 130)])
def test_a_signal_is_75_only_where_there_is_something_to_continue(signum, resumable, status, capsys):
    def command(argv):
        os.kill(os.getpid(), signum)
        signal.pause()
        return 0

    assert guarded(command, [], resumable=resumable) == status
    assert capsys.readouterr().err.startswith("Stopped.")


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
