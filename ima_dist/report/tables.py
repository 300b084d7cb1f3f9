"""Our runs as rows of the paper's tables."""

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ima_dist.config.attacks import ATTACKS
from ima_dist.config.presets import has_papers_data, is_the_papers, preset_config
from ima_dist.config.provenance import preset_says
from ima_dist.config.schema import EXTERNAL, Config, EvalConfig
from ima_dist.config.values import differences, option_values
from ima_dist.plans.sweepfile import reads
from ima_dist.results import paper
from ima_dist.results.choice import Share, Spread, spread_of
from ima_dist.results.same_data import data_sets
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import Point, Row, attack_rows, epochs_of, fewest_samples, noise_key
from ima_dist.rundir.run import Run

Key = tuple[str, float]  # "test" or "validation", noise level
_USUAL = EvalConfig()


@dataclass(frozen=True)
class Measured:
    """An accuracy of ours: of one run, or the mean over several seeds.

    interval: 95 % interval for the ``samples`` test samples and for the seeds, if there are several. spread: standard
    deviation over the seeds. effective, groups: as in ``Point``, where groups are known.
    """

    accuracy: float
    samples: int | None = None
    interval: tuple[float, float] | None = None
    spread: float | None = None
    effective: float | None = None
    groups: int | None = None


@dataclass(frozen=True, eq=False)
class Line:
    """A row of a table under one attack: our runs that differ only in their seed, and the paper's row.

    row: as paper.csv spells it. results: empty for a row of the paper that we have no run for. differs: how the
    runs differ from the paper's, in words; a line with any is reduced. point: one of the runs', for the protocol.
    """

    row: str
    attack: str
    epoch: int | None
    results: tuple[Run, ...]
    ours: dict[Key, Measured]
    theirs: dict[Key, paper.Cell]
    differs: tuple[str, ...]
    point: Point | None

    @property
    def reduced(self) -> bool:
        """Whether the runs are the paper's experiment, but smaller or otherwise changed."""
        return bool(self.differs) and is_experiment(self.results[0].config)


@dataclass(frozen=True, eq=False)
class Table:
    """number: in the paper, or None for runs that have no place there. keys: the columns."""

    number: int | None
    title: str
    preset: str
    norm: str
    lines: list[Line]

    @property
    def keys(self) -> list[Key]:
        return sorted({key for line in self.lines for key in (*line.ours, *line.theirs)})


_Placed = tuple[int | None, Line]  # the number of a table of the paper, and a line of one run for it


def make_tables(results: Iterable[Run]) -> list[Table]:
    """The paper's tables that our runs belong to, by number, and after them one for each experiment that it lacks."""
    pieces = [piece for result in results for piece in (*_final(result), *_by_epoch(result))]
    tables = []
    for number in sorted({table for table, _ in pieces if table is not None}):
        own = [line for table, line in pieces if table == number]
        # A run of the main table is also the row β = 0.5. A table with only that row is left out.
        if number not in paper.BETA_TABLES or {line.row for line in own} != {"beta=0.5"}:
            config = own[0].results[0].config
            tables.append(Table(number, paper.title(number), config.preset, config.norm, _lines(number, own)))
    derived = [_table_15(table) for table in tables if table.number == 14]
    tables = sorted([*tables, *(t for t in derived if t.lines)], key=lambda table: table.number or 0)
    others = [line for table, line in pieces if table is None]
    beside: dict[tuple[str, str], list[Line]] = {}
    for name, line in zip(data_sets([line.results[0] for line in others]), others, strict=True):
        beside.setdefault((name, line.results[0].config.norm), []).append(line)
    for (name, norm), own in sorted(beside.items()):
        config = own[0].results[0].config
        theirs = has_papers_data(config)
        place = f"Beside the paper's tables: {paper.DATA_SETS.get(name, name)}" if theirs else f"Own data: {name}"
        tables.append(Table(None, f"{place}, {NORM_SIGN[norm]} noise", config.preset, norm, _lines(None, own)))
    return tables


def paper_attack(table: Table) -> str:
    """The attack whose rows are drawn: the paper's, or pgd100."""
    return "pgd100" if table.number is None else paper.attack_of(table.number)


def label(result: Run) -> str:
    """A run's name in a figure: its method, with what tells it from others of the same method."""
    config = result.config
    if config.method == EXTERNAL:
        return row_name(result)
    level = f" {config.eps_max:g}" if config.method in ("adv", "rand") else ""
    weight = f" β={config.beta:g}" if config.method == "ima" and config.beta != preset_config(config).beta else ""
    apart = {"seed", "eps_max", "beta"}
    if config.method == "ima" and config.margin_rule != "paper":
        weight += f" ({config.margin_rule})"
        apart |= {"margin_rule", "margin_update"}
    reduced = ", reduced" * (has_papers_data(config) and bool(setting_differences(config, apart)))
    return f"{config.method}{level}{weight}, seed {config.seed}{reduced}"


def is_experiment(config: Config) -> bool:
    """Whether a run is one of the paper's experiments, perhaps changed."""
    return has_papers_data(config) and config.method != EXTERNAL


def row_name(result: Run) -> str:
    """The name of a run's row beside the paper's tables; networks trained elsewhere have no settings to be told by."""
    config = result.config
    if config.method == EXTERNAL:
        return f"external: {result.name}"
    return f"{config.method}{config.eps_max:g}" if config.method in ("adv", "rand") else config.method


def setting_differences(config: Config, apart: Iterable[str] = ()) -> tuple[str, ...]:
    """How a run differs from the paper's experiment, a phrase for each option, but for those in ``apart``.

    A phrase has the preset's value, as the paper's only where the paper gives it.
    """
    usual = option_values(preset_config(config))
    own = option_values(config)
    names = [n for n in differences(config, preset_config(config)) if n not in apart]
    # An expansion step that only follows from other epochs or another ε_max is no difference of its own.
    names = [n for n in names if own.get(n) != usual.get(n)]
    if config.method == EXTERNAL:
        names = [n for n in names if reads(EXTERNAL, n)]
    # The paper says nothing of other people's data.
    known, copied = is_experiment(config), paper.copied(config)
    theirs = {n: f" ({preset_says(n, config)}: {_value(usual.get(n))})" if known else "" for n in names}
    return (*(f"{n} {_value(own.get(n))}{theirs[n]}" for n in names), *([copied] if copied else []))


def _final(result: Run) -> Iterable[_Placed]:
    """The last network under every attack, in each table that it belongs to."""
    config = result.config
    attacks = attack_rows(result.points, config.epochs)
    rows: list[tuple[int | None, str]] = [*paper.rows_of(config).items()] or [(None, row_name(result))]
    black_box = [table for table, _ in rows if table in paper.BLACK_BOX_TABLES]
    for attack, entries in attacks.items():
        for table, row in rows:
            # Of a run with spsa, pgd100 is what spsa is compared with.
            compared = bool(black_box) and "spsa" in attacks and attack in ("spsa", "pgd100")
            if compared == (table in paper.BLACK_BOX_TABLES):
                yield _placed(table, row, attack, config.epochs, result, entries)


def _by_epoch(result: Run) -> Iterable[_Placed]:
    """Networks after several epochs of a run (Tables 16 to 21)."""
    epochs = epochs_of(result.points)
    if epochs == [result.config.epochs]:
        return
    for epoch in epochs:
        found = paper.epoch_row_name(result.config, epoch)
        for attack, entries in attack_rows(result.points, epoch).items():
            if found and attack in ("pgd100", "worst", "pgd-mma"):
                yield _placed(*found, attack, epoch, result, entries)


def _placed(table: int | None, row: str, attack: str, epoch: int, result: Run, points: Row) -> _Placed:
    config = result.config
    apart = ["seed", *(["beta"] if table in paper.BETA_TABLES else [])]
    if table is not None and config.method in ("adv", "rand"):
        apart.append("eps_max")
    differs = setting_differences(config, apart) + _attack_differences(
        config, table, points, result.summary.get("test_samples")
    )
    ours: dict[Key, Measured] = {
        ("test", level): Measured(p.share, p.samples, effective=p.effective, groups=p.groups)
        for level, p in points.items()
    }
    for entry in result.history if table in paper.EPOCHS_TABLES else ():
        if entry["epoch"] == epoch and entry["val_accuracy"] is not None:
            ours["validation", 0.0] = Measured(entry["val_accuracy"])
    theirs, point = _theirs(table, row, attack), next(iter(points.values()))
    return table, Line(row, attack, epoch, (result,), ours, theirs, differs, point)


def _attack_differences(config: Config, table: int | None, points: Row, left: int | None) -> tuple[str, ...]:
    point = next(iter(points.values()))
    found = []
    if is_the_papers(config):
        samples, whole = fewest_samples(points.values()), paper.size_of_test_set(config.preset, table)
        if samples < whole:
            first = ", the first ones" if samples < (left or 0) else ""  # a subset of the data leaves fewer
            which = ", chosen in proportion to the classes" if point.order == "stratified" else first
            found.append(f"{samples:,} of {whole:,} test samples{which}")
    usual = {"steps": _USUAL.steps, "spsa_samples": _USUAL.spsa_samples}
    if point.attack in ("pgd100", "worst"):
        usual["step_scale"] = _USUAL.step_scale  # type: ignore[assignment]
    for name, value in usual.items():
        own = getattr(point, name)
        if own not in (None, value):
            whose = "preset" if point.attack == "worst" else preset_says(f"eval.{name}", config)
            theirs = f" ({whose}: {_value(value)})" if has_papers_data(config) else ""
            found.append(f"eval.{name} {_value(own)}{theirs}")
    return tuple(found)


def _lines(table: int | None, own: list[Line]) -> list[Line]:
    """The lines of a table for those of single runs, and for the rows of the paper that none of them belongs to.

    Lines that differ only in their seed become one; a second run with the same seed starts another, and so does
    another protocol.
    """
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in own:
        protocol = None if line.point is None else line.point.protocol
        key: tuple[Any, ...] = (line.row, line.attack, line.epoch, line.differs, protocol)
        seed, turn = line.results[0].config.seed, 0
        while any(other.results[0].config.seed == seed for other in groups.get((*key, turn), [])):
            turn += 1
        groups.setdefault((*key, turn), []).append(line)
    lines = [_joined(group, [g for g in groups.values() if g is not group]) for group in groups.values()]
    cells = paper.cells(table=table) if table is not None else []
    for row, attack in dict.fromkeys((cell.method, cell.attack) for cell in cells):
        if not any((line.row, line.attack) == (row, attack) for line in lines):
            lines.append(Line(row, attack, None, (), {}, _theirs(table, row, attack), (), None))
    known = list(dict.fromkeys(cell.method for cell in cells))
    main = paper.attack_of(table) if table is not None else "pgd100"

    def place(line: Line) -> tuple[Any, ...]:
        row = known.index(line.row) if line.row in known else len(known)
        return row, line.row, bool(line.differs), line.differs, line.attack != main, ATTACKS.index(line.attack)

    return sorted(lines, key=place)


def _joined(lines: list[Line], others: list[list[Line]]) -> Line:
    """The lines of several seeds as one. ``others``: the groups beside them, which tell of the spread over seeds."""
    ours = {}
    for key in sorted({key for line in lines for key in line.ours}):
        share, samples = _share(lines, key)
        beside = [_share(group, key)[0] for group in others if any(key in line.ours for line in group)]
        ours[key] = _mean(share, samples, spread_of([share], beside))
    results = tuple(result for line in lines for result in line.results)
    return dataclasses.replace(lines[0], results=results, ours=ours)


def _share(lines: list[Line], key: Key) -> tuple[Share, int | None]:
    """The accuracies of the lines that have one, and the number of test samples, if it is known."""
    found = [line.ours[key] for line in lines if key in line.ours]
    samples = min((m.samples for m in found if m.samples is not None), default=None)
    effective = min((m.effective for m in found if m.effective is not None), default=samples or 1)
    groups = None if any(m.groups is None for m in found) else min(m.groups for m in found if m.groups is not None)
    return Share(tuple(m.accuracy for m in found), effective, groups=groups), samples


def _theirs(table: int | None, row: str, attack: str) -> dict[Key, paper.Cell]:
    cells = paper.cells(table=table, method=row, attack=attack) if table is not None else []
    return {("validation" if c.split == "validation" else "test", noise_key(c.noise)): c for c in cells}


def _mean(share: Share, samples: int | None, spread: Spread | None) -> Measured:
    several = len(share.values) > 1
    deviation = statistics.stdev(share.values) if several else None
    # One run's row is about this run: what other seeds would give is not in it.
    if samples is None:
        return Measured(share.mean, None, None, deviation)
    low, high = share.interval(spread if several else None)
    return Measured(share.mean, samples, (max(0.0, low), min(1.0, high)) if several else (low, high), deviation)


def _table_15(table: Table) -> Table:
    """Size of the difference between β = 0.1 and β = 0.5, noise level by noise level (Table 15)."""
    lines = []
    for low in table.lines:
        for high in table.lines:
            same = low.attack == high.attack == "pgd100" and low.differs == high.differs
            if same and low.results and high.results and (low.row, high.row) == ("beta=0.1", "beta=0.5"):
                ours = {
                    key: Measured(abs(low.ours[key].accuracy - high.ours[key].accuracy), low.ours[key].samples)
                    for key in low.ours.keys() & high.ours.keys()
                }
                theirs = {
                    key: dataclasses.replace(cell, accuracy=round(abs(cell.accuracy - high.theirs[key].accuracy), 6))
                    for key, cell in low.theirs.items()
                }
                results = (*low.results, *high.results)
                difference = dataclasses.replace(low, row="difference", results=results, ours=ours, theirs=theirs)
                lines += [low, high, difference]
    return Table(15, paper.title(15), table.preset, table.norm, lines)


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)
