"""What a fault led to, and the table of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.faults.command import EVERY, STEPS
from benchmarks.faults.kinds import KINDS

_LARGEST_DIFFERENCE = 1e-9


@dataclass
class Outcome:
    """What a fault led to.

    moment: where it struck. status, sentence: exit status of the disturbed command (negative: a signal) and the last
    that it said. seconds: from the fault to its end. survived: the command finished the run all the same. lost:
    training steps that had been begun and are in no whole checkpoint. left: processes of the run that did not end
    with it. difference: of the run's result from the undisturbed one. recounted: the steps of the run, counted one by
    one, are those of an undisturbed run and those lost to its faults.
    """

    kind: str
    seed: str
    moment: str
    status: int = 0
    sentence: str = ""
    seconds: float = 0.0
    survived: bool = False
    lost: int = 0
    left: int = 0
    difference: float = float("inf")
    recounted: bool = False

    @property
    def harmless(self) -> bool:
        return self.difference < _LARGEST_DIFFERENCE and self.lost <= most_lost(self.kind) and self.whole

    @property
    def whole(self) -> bool:
        return self.recounted and not self.left


def most_lost(kind: str) -> int:
    """Steps that a fault of this kind may cost: those between two checkpoints.

    Where the fault lies in the newest checkpoint itself, those since the one before are gone too. All mid-epoch
    checkpoints need the margins that the epoch began with; if these are damaged, the last one of the epoch before
    is what is left.
    """
    return {"truncated_checkpoint": 2 * EVERY, "flipped_byte": STEPS}.get(kind, EVERY)


def table(outcomes: list[Outcome]) -> str:
    """Markdown, by kind."""
    lines = [
        "| kind | seed | moment | status | after | run | steps lost | difference | last line |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for o in sorted(outcomes, key=lambda o: list(KINDS).index(o.kind)):
        how = ("went on" if o.survived else "resumed") if o.harmless else "**HARMED**"
        lines.append(
            f"| {o.kind} | {o.seed} | {o.moment} | {o.status} | {o.seconds:.0f} s | {how} | {o.lost} | "
            f"{o.difference:.0e} | {o.sentence.replace('|', chr(92) + '|')} |"
        )
    harmless = sum(o.harmless for o in outcomes)
    kinds = len({o.kind for o in outcomes})
    return "\n".join([*lines, "", f"{len(outcomes)} faults of {kinds} kinds; {harmless} did no harm.", ""])
