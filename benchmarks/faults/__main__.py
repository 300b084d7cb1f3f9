"""``python -m benchmarks.faults [--faults N] [--seed S] [--kinds A,B] [--table FILE]``: break runs in every way.

Moons is trained on two hosts (network namespaces with a Ray node each; needs root). In every epoch, or in the margin
pass after it, at a moment drawn from the seed, something is broken, and what the run makes of it is recorded; then it
is resumed, on a new cluster if the old one was broken. In the end margins and weights must equal those of an
undisturbed run to 1e-9 (float64). No fault may cost more training steps than were done since the last checkpoint, and
no process of the run may be left. Prints a line a fault, then all as Markdown. Exit status 1 if a fault did harm.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults.drill import Fault, Ground, State, drill, ground_in, undisturbed
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.outcome import Outcome, table
from benchmarks.hosts import why_not


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=44)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--side-by-side", type=int, default=1, help="runs at a time, each on hosts of its own")
    parser.add_argument("--table", type=Path, help="also write the table here, after every run")
    arguments = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    kinds = arguments.kinds.split(",")
    planned = [(kinds[n % len(kinds)], f"{arguments.seed}-{n}") for n in range(arguments.faults)]
    random.Random(arguments.seed).shuffle(planned)
    outcomes: list[Outcome] = []
    lock = threading.Lock()

    def next_fault() -> Fault | None:
        with lock:
            return planned.pop() if planned else None

    def work(ground: Ground) -> None:
        if ground is grounds[0]:
            try:
                reference.set_result(undisturbed(ground))
            except Exception as error:
                reference.set_exception(error)
        while planned:
            found = drill(next_fault, reference, ground)
            with lock:
                outcomes.extend(found)
                for outcome in found:
                    print(f"{'ok' if outcome.harmless else 'HARM'} {outcome}", file=sys.stderr, flush=True)
                if arguments.table:
                    arguments.table.write_text(table(outcomes))

    with tempfile.TemporaryDirectory(prefix="faults-") as directory, contextlib.ExitStack() as stack:
        grounds = [stack.enter_context(ground_in(Path(directory) / str(n))) for n in range(arguments.side_by_side)]
        reference: Future[State] = Future()
        with ThreadPoolExecutor(len(grounds)) as pool:
            for done in [pool.submit(work, ground) for ground in grounds]:
                done.result()
    print(table(outcomes))
    return 0 if all(outcome.harmless for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
