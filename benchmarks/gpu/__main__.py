"""Run the check: ``python -m benchmarks.gpu [--seconds 470] [--parts noise,waits] [--quick] > gpu.jsonl``."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import sys
import time

from benchmarks.gpu.check import Check

# Each is a module here with a function ``run``: first whether the results are right, then how fast they come.
PARTS = (
    "environment", "precision", "collectives", "noise", "methods", "attacks", "world", "waits", "memory", "boundary",
    "table2", "batches", "speed",
)  # fmt: skip

# Seconds beyond the limit for whatever has begun.
_GRACE = 8.0


def main(arguments: list[str] | None = None) -> int:
    """Print JSON lines; returns 1 if something failed, else 0, skipped parts included."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Check a machine with a card.")
    parser.add_argument("--seconds", type=float, default=470.0, help="stop after this time (default: 470)")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, as on a machine without a card")
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    try:
        import torch
    except ModuleNotFoundError as error:
        print(f'{{"part": "all", "skipped": "needs {error.name}, which {sys.executable} does not have"}}')
        return 0
    card = torch.cuda.is_available()
    if not card:
        # Threads cost more than they bring in small sizes.
        torch.set_num_threads(1)
    # Even what hangs in a kernel or in NCCL ends, with a stack trace and status 1; what was found is printed already.
    faulthandler.dump_traceback_later(options.seconds + _GRACE, exit=True)
    try:
        return _run(names, options, card)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run(names: list[str], options: argparse.Namespace, card: bool) -> int:
    import torch

    check = Check(torch.device("cuda", 0) if card else torch.device("cpu"), options.quick or not card, options.seconds)
    for name in names:
        began = time.monotonic()
        with check.share_of_time(last=name == names[-1]), check.attempt(name):
            check.need_time()
            importlib.import_module(f"benchmarks.gpu.{name}").run(check)
        check.say("took", of=name, seconds=round(time.monotonic() - began, 1))
    check.say("summary", failed=check.failed, skipped=check.skipped, quick=check.quick)
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
