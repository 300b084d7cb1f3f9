"""One of the paper's tables: our rows, each with the paper's below it."""

from ima_dist.config.presets import is_the_papers
from ima_dist.results import obfuscation, paper, white_noise
from ima_dist.results.text import accuracy, aligned
from ima_dist.results.tradeoff import tradeoff_table
from ima_dist.rundir.curves import attack_rows, format_noise, levels_of, noise_key, samples_label
from ima_dist.rundir.run import Run


def comparison_table(runs: dict[str, Run], table: int | None, epochs: tuple[int, ...] = ()) -> str:
    """One line per run and attack, with the paper's below it where it has one, and then the verdicts on SPSA.

    ``runs``: name of the row, as in the paper's tables -> finished run. ``table``: its number in the paper.
    ``epochs``: show the networks after these epochs instead of the last one (Tables 16 to 21).
    """
    if epochs:
        blocks = []
        for run in runs.values():
            points = [point for point in run.points if point.epoch in epochs]
            blocks.append(tradeoff_table(run.config, points, run.history))
        return "\n\n".join(blocks)
    ours = {name: attack_rows(run.points) for name, run in runs.items()}
    levels = levels_of(row for attacks in ours.values() for row in attacks.values())
    lines = [["noise", "", "samples", *map(format_noise, levels)]]
    for name, attacks in ours.items():
        for attack, row in attacks.items():
            samples = samples_label(row, runs[name].summary.get("test_samples"))
            values = [accuracy(row[x].accuracy) if x in row else "-" for x in levels]
            lines.append([name, attack, samples, *values])
            comparable = table is not None and is_the_papers(runs[name].config)
            cells = paper.cells(table=table, method=name, attack=attack) if comparable else []
            theirs = {noise_key(cell.noise): cell.accuracy for cell in cells if cell.split != "validation"}
            if theirs:
                values = [accuracy(theirs.get(x)) for x in levels]
                lines.append(["", "paper", "", *values])
    verdicts = {name: obfuscation.compared(run, run.config.epochs) for name, run in runs.items()}
    notes = [f"{name}: {obfuscation.verdict(found)}" for name, found in verdicts.items() if found]
    notes += [f"{name}: {said}" for name, run in runs.items() if (said := white_noise.describe(run.points, run.config))]
    notes += [f"{name}: {copied}." for name, run in runs.items() if (copied := paper.copied(run.config))]
    return "\n".join(aligned(lines) + notes)
