"""The report as one HTML file that loads nothing: what page.html shows, and how it writes numbers."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ima_dist import __version__
from ima_dist.config.attacks import describe_attack
from ima_dist.config.presets import data_name, train_command
from ima_dist.config.provenance import not_the_papers
from ima_dist.figures.interactive.style import png_url
from ima_dist.report.figures import Drawing
from ima_dist.report.packed import place, scripts
from ima_dist.report.tables import Line, Table, is_experiment, label, setting_differences
from ima_dist.results import certificates, obfuscation, white_noise
from ima_dist.results.binary import shown_thresholds
from ima_dist.results.by_class import (
    BY_CLASS,
    OVERALL,
    THRESHOLDS,
    cells,
    class_names,
    class_rows,
    conditions,
    overall_rows,
    threshold_rows,
)
from ima_dist.results.cost import cost_numbers, cost_text
from ima_dist.results.doubts import doubts
from ima_dist.results.performance import shown
from ima_dist.results.self_tests import self_test_lines
from ima_dist.results.split import split_level
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.run import Run


def page(results: list[Run], tables: list[Table], drawings: list[Drawing], problems: list[str]) -> str:
    """The whole file. ``problems``: a sentence for each run that is left out or not complete."""
    return _template().render(
        count=f"{len(results)} finished run{'s' * (len(results) != 1)}",
        results=results,
        tables=tables,
        drawings=drawings,
        problems=problems,
        own_settings=not_the_papers(result.config for result in results),
        version=__version__,
    )


def table_file(number: int) -> str:
    """Name of a table's CSV file."""
    return f"table{number:02d}.csv"


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # nothing that a run contains may become HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    labels = (data_name, doubts, is_experiment, label, obfuscation.verdict)
    functions = (*labels, place, png_url, scripts, setting_differences, split_level, table_file, train_command)
    own = (_attacks, _black_box, _by_class, _certified, _columns, _cost, _guessed, _number, _runs_of, _samples)
    own_too = (_self_tests, _white_noise)
    environment.globals |= {f.__name__.lstrip("_"): f for f in (*functions, *own, *own_too)}
    environment.filters["noise"] = format_noise
    return environment.get_template("page.html")


def _cost(run: Run) -> str:
    return cost_text(cost_numbers(run.summary.get("cost")))


def _columns(table: Table) -> list[str]:
    return [format_noise(level) + (" (val)" if split == "validation" else "") for split, level in table.keys]


def _samples(line: Line) -> str:
    counts = [m.samples for m in line.ours.values() if m.samples is not None]
    return f"{min(counts):,}" if counts else ""


def _runs_of(table: Table) -> list[Run]:
    return list({r.name: r for line in table.lines for r in line.results}.values())


def _attacks(table: Table) -> list[str]:
    """How the runs of a table were attacked, a sentence for each protocol."""
    return list(dict.fromkeys(describe_attack(line.point.to_json()) for line in table.lines if line.point))


def _black_box(result: Run, table: Table) -> list[obfuscation.Level]:
    """SPSA beside PGD on the same samples, if the table has both attacks on the run."""
    both = {line.attack for line in table.lines if result in line.results} >= {"spsa", "pgd100"}
    return obfuscation.compared(result, result.config.epochs) if both else []


def _by_class(result: Run) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, columns and rows of each table on the classes of a run; [] for a run of an earlier version."""
    entries = shown(result)
    tables: list[tuple[str, tuple[str, ...], list[dict[str, Any]]]]
    tables = [("All classes together", OVERALL, overall_rows(entries))]
    if entries and entries[0].classes:
        title = f"Each class against the rest, {conditions(entries[0])}"
        tables.append((title, BY_CLASS, class_rows(entries[0], class_names(result))))
    tables.append(
        ("Thresholds on the probability of the second class", THRESHOLDS, threshold_rows(shown_thresholds(result)))
    )
    return [(title, columns, [cells(row, columns) for row in rows]) for title, columns, rows in tables if rows]


def _self_tests(result: Run) -> list[str]:
    """A sentence for each self-test of an attack on the last network."""
    return self_test_lines(result, result.config.epochs)


def _white_noise(result: Run) -> str | None:
    return white_noise.describe(result.points, result.config)


def _certified(result: Run) -> list[tuple[str, list[list[str]]]]:
    """For each noise of the smoothed classifier: how it was certified, and the rows of its table as text."""
    found = []
    for entry in certificates.shown(result):
        lines = [
            [
                "accuracy" if row["radius"] is None else f"certified within {format_noise(row['radius'])}",
                f"{row['share']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
            ]
            for row in certificates.rows(entry)
        ]
        found.append((entry.setting, [*lines, ["abstained", f"{entry.abstained:.4f}"]]))
    return found


def _guessed(table: Table) -> bool:
    return any(cell.legible == "guess" for line in table.lines for cell in line.theirs.values())


def _number(result: Run, name: str, form: str) -> str:
    """A number of summary.json, where ``form`` says how it is written."""
    value = result.summary.get(name)
    return form.format(value) if isinstance(value, int | float) else "not recorded"
