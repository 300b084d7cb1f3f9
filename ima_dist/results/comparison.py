"""The rows of one of the paper's tables: ours, and the paper's below."""

from __future__ import annotations

from ima_dist.results import obfuscation, paper
from ima_dist.results.table import aligned, attack_rows, format_noise, noise_key
from ima_dist.results.tradeoff import tradeoff_table
from ima_dist.rundir.directory import RunDir


def comparison_table(runs: dict[str, RunDir], table: int | None, epochs: tuple[int, ...] = ()) -> str:
    """A line for each run and attack, and the paper's beneath it where it has one; verdicts on SPSA below.

    ``runs``: name of the row, as the paper's tables spell it -> finished run. ``table``: the paper's number.
    ``epochs``: show the networks after these epochs instead of the last (Tables 16 to 21).
    """
    if epochs:
        blocks = []
        for run in runs.values():
            curves = [c for c in run.summary().get("curves", []) if c["epoch"] in epochs]
            blocks.append(tradeoff_table(run.config(), curves, run.read_history()))
        return "\n\n".join(blocks)
    ours = {name: attack_rows(run.summary().get("curves", [])) for name, run in runs.items()}
    levels = sorted({x for attacks in ours.values() for row in attacks.values() for x in row})
    lines = [["noise", "", "samples", *map(format_noise, levels)]]
    for name, attacks in ours.items():
        for attack, row in attacks.items():
            samples = str(max(int(entry["samples"]) for entry in row.values()))
            values = [f"{row[x]['accuracy']:.4f}" if x in row else "-" for x in levels]
            lines.append([name, attack, samples, *values])
            cells = paper.cells(table=table, method=name, attack=attack) if table is not None else []
            theirs = {noise_key(cell.noise): cell.accuracy for cell in cells if cell.split != "validation"}
            if theirs:
                values = [f"{theirs[x]:.4f}" if x in theirs else "-" for x in levels]
                lines.append(["", "paper", "", *values])
    verdicts = {name: obfuscation.levels_of(run, run.config().epochs) for name, run in runs.items()}
    notes = [f"{name}: {obfuscation.verdict(found)}" for name, found in verdicts.items() if found]
    return "\n".join(aligned(lines) + notes)
