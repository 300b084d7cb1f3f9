"""``--notify COMMAND|URL``: tell somebody that a run or a sweep has ended or failed.

The command gets a JSON object on its standard input, and a URL by POST: event ("finished" or "failed"), text (one
sentence, which chat services show as it is), kind ("run" or "sweep"), name, path, host, message (why it failed, or
null), command (how to continue a run that failed, or null), and summary (that of summary.json; of a sweep the
statuses of its trials by name). Whatever goes wrong costs a warning and at most ``WITHIN`` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import Any, Literal

from ima_dist.config.errors import complain, first_line

#: Read where ``--notify`` is not given, by jobs under SLURM for example. Not stored with a run: it may be secret.
VARIABLE = "IMA_DIST_NOTIFY"
WITHIN = 20.0


def add_notify(parser: argparse.ArgumentParser) -> None:
    """Add ``--notify``."""
    text = (
        f"at the end, or a failure, start this command with a JSON summary as input, or post it (default: ${VARIABLE})"
    )
    parser.add_argument("--notify", metavar="COMMAND|URL", default=os.environ.get(VARIABLE) or None, help=text)


def notify(
    target: str | None,
    kind: Literal["run", "sweep"],
    path: Path,
    *,
    message: str | None,
    summary: dict[str, Any],
    command: str | None = None,
) -> None:
    """Call the command, or post to the URL, that ``--notify`` names; nothing for None.

    message: why the run or sweep failed; None if it has finished. command: that continues it. Raises nothing.
    """
    if target is None:
        return
    event = "finished" if message is None else "failed"
    host = platform.node()
    what = {
        "event": event,
        "text": f"{kind} {path.name} on {host} {event}" + (f": {message}" if message else ""),
        "kind": kind,
        "name": path.name,
        "path": str(path),
        "host": host,
        "message": message,
        "command": command,
        "summary": summary,
    }
    body = json.dumps(what, default=str).encode()
    send = _post if target.startswith(("http://", "https://")) else _start
    problems = ["no answer"]

    def act() -> None:
        problems[0] = send(target, body)

    # A name that is being looked up cannot be interrupted, and the process must not wait for it.
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(WITHIN + 1)
    if problems[0]:
        complain(f"warning: --notify: {problems[0]}")


def _post(url: str, body: bytes) -> str:
    """What has gone wrong, without the address, which may be secret; "" for nothing."""
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WITHIN):
            return ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"not posted ({first_line(error).replace(url, 'the address')})"


def _start(command: str, body: bytes) -> str:
    """As ``_post``, for a command of the shell, which is ended with all that it has started if it takes too long."""
    try:
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return first_line(error)
    try:
        _, said = process.communicate(body, WITHIN)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return f"the command had not ended after {WITHIN:.0f} s, and was ended"
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return f"the command ended with status {process.returncode}" + "".join(f" ({line})" for line in last)
    return ""
