"""What one wants to know first: what runs, what has ended and how, what is best, and what to be careful about."""

import time

from ima_dist.dashboard.headlines import Robust, experiments, headlines
from ima_dist.dashboard.parts import Item, Note, Panel, Part, Side, Values, share_text, with_interval
from ima_dist.dashboard.standing import BADLY, ago, caution_of, ended_at, progress_of, remedy_of, sentence_of
from ima_dist.dashboard.state import Control, State, unparse
from ima_dist.dashboard.terms import named
from ima_dist.results.doubts import doubts
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.liveness import RUNNING
from ima_dist.tracking.collection import Collection, Recorded

TITLE = "Home"
INTRODUCTION = ""
LIVE = True
_FEW, _FEW_BADLY, _FEW_LATELY, _BEST = 4, 3, 3, 6
_READ = "Robust accuracy [95 % interval] · clean accuracy."
_LUCK = "Each is the best on the test samples that it is measured on: the best of many looks better than it is."


def controls(runs: Collection, state: State) -> list[Control]:
    return []


def show(runs: Collection, values: Values) -> list[Part]:
    every = list(runs.runs.values())
    if not every:
        return [Note(f"There is no run in {runs.root}. To make one: python -m ima_dist.train moons")]
    status = {run.name: run.status for run in every}
    ended = {run.name: ended_at(run) for run in every}
    newest = sorted(every, key=lambda run: ended[run.name], reverse=True)
    evaluated = [run for run in every if run.curves_table.num_rows]
    kinds = experiments(evaluated)
    robust = headlines(evaluated, kinds)
    running = [run for run in every if status[run.name] == RUNNING]
    badly = [run for run in newest if status[run.name] in BADLY]
    finished = [run for run in newest if status[run.name] == "finished"]
    best = _best([run for run in finished if run.name in robust], kinds, robust)
    now = time.time()
    lately = [_ended(run, now - ended[run.name], robust.get(run.name)) for run in finished[:_FEW_LATELY]]
    more = _more(len(finished), _FEW_LATELY, "finished")
    damaged = [run for run in every if status[run.name] == "damaged"]
    return [
        Side(
            [
                [_running(running), _badly(badly, now, ended)],
                [
                    _best_panel(best, kinds, robust),
                    Panel("ended", "Finished lately", lately, "None yet.", more),
                    _warnings(len(runs.problems), damaged, [*(run for run, _ in best), *finished[:_FEW_LATELY]]),
                ],
            ]
        )
    ]


def _href(run: Recorded) -> str:
    return "run" + unparse({"run": [run.name]})


def _more(count: int, shown: int, *statuses: str) -> tuple[str, str] | None:
    return (f"all {count}", "runs" + unparse({"status": list(statuses)})) if count > shown else None


def _running(running: list[Recorded]) -> Panel:
    found = [(run, progress_of(run)) for run in running]
    found.sort(key=lambda pair: pair[1].share, reverse=True)
    items = []
    for run, at in found[:_FEW]:
        left = f"{at.left} left" if at.left else None
        said = [at.words, at.stage if at.stage != "training" else None, left, at.where]
        tag, tone = (at.silent, "bad") if at.silent else ("", "")
        text = " · ".join(part for part in said if part)
        items.append(Item(run.name, _href(run), text, tag, tone, at.share))
    heading = f"Running ({len(running)})"
    return Panel("running", heading, items, "Nothing is running.", _more(len(running), _FEW, RUNNING))


def _badly(badly: list[Recorded], now: float, ended: dict[str, float]) -> Panel:
    items = [
        Item(
            run.name,
            _href(run),
            sentence_of(run),
            f"{run.status} {ago(now - ended[run.name])}",
            "bad",
            command=remedy_of(run),
            caution=caution_of(run),
        )
        for run in badly[:_FEW_BADLY]
    ]
    heading = f"Failed, died or interrupted ({len(badly)})"
    return Panel("badly", heading, items, "None.", _more(len(badly), _FEW_BADLY, *BADLY))


def _ended(run: Recorded, seconds: float, robust: Robust | None) -> Item:
    clean = run.info["clean_accuracy"]
    said = [
        _said(robust) if robust else "not attacked",
        f"clean {share_text(clean)}" if isinstance(clean, float) else None,
    ]
    return Item(run.name, _href(run), " · ".join(part for part in said if part), ago(seconds))


def _said(robust: Robust) -> str:
    value = with_interval(robust.accuracy, (robust.low, robust.high))
    return f"{value} under {named(robust.attack)} at ε {format_noise(robust.noise)}"


def _best(
    runs: list[Recorded], kinds: dict[str, tuple[str, str]], robust: dict[str, Robust]
) -> list[tuple[Recorded, int]]:
    """The run with the largest robust accuracy of each data set and norm, and the number of those it was taken from;
    data sets with many runs first."""
    groups: dict[tuple[str, str], list[Recorded]] = {}
    for run in runs:
        groups.setdefault(kinds[run.name], []).append(run)
    found = [(max(own, key=lambda run: robust[run.name].accuracy), len(own)) for own in groups.values()]
    return sorted(found, key=lambda pair: -pair[1])


def _best_panel(
    best: list[tuple[Recorded, int]], kinds: dict[str, tuple[str, str]], robust: dict[str, Robust]
) -> Panel:
    items = []
    for run, count in best[:_BEST]:
        data, norm = kinds[run.name]
        of = f"best of {count}" if count > 1 else "the only one"
        text = f"{data}, {NORM_SIGN.get(norm, norm)}: {_said(robust[run.name])}"
        items.append(Item(run.name, _href(run), f"{text} · clean {share_text(run.info['clean_accuracy'] or 0)}", of))
    about = f"{_READ} {_LUCK}"
    more = ("which of them differ: Trade-off", "tradeoff") if best else None
    return Panel("best", "Most robust, by data set and norm", items, "Nothing has been attacked yet.", more, about)


def _warnings(unreadable: int, damaged: list[Recorded], runs: list[Recorded]) -> Panel:
    """What is missing from the results above, and what puts them in doubt."""
    items = []
    if unreadable:
        files = f"{unreadable} file{'s' * (unreadable != 1)} could not be read"
        items.append(Item(files, "", "What they hold is missing here. The top of the page names them."))
    items += [Item(run.name, _href(run), "", "damaged: its results are missing here", "bad") for run in damaged]
    own = {run.name: run for run in runs}
    items += [Item(run.name, _href(run), text) for run in own.values() for text in doubts(run)]
    return Panel("warnings", "Warnings about these results", items[:_FEW], "None.")
