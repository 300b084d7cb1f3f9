"""The report as one HTML file that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from ima_dist import __version__
from ima_dist.config.attacks import describe_attack
from ima_dist.config.presets import OWN_SETTINGS, train_command
from ima_dist.report.figures import Picture, label
from ima_dist.report.tables import Key, Line, Measured, Table, setting_differences
from ima_dist.results import obfuscation
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.run import Run

_STYLE = """
body { font: 16px/1.45 sans-serif; max-width: 75em; margin: 0 auto; padding: 0 1em 3em; color: #111; background: #fff }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: bold; padding: .3em 0 }
th, td { padding: .25em .6em; border-bottom: 1px solid #ccc; text-align: right; vertical-align: top }
td { white-space: nowrap }
th[scope=row] { text-align: left; font-weight: normal; min-width: 12em }
tr.ours th, tr.ours td { border-top: 2px solid #888; border-bottom: 0 }
tr.paper td, tr.paper th, tr.difference td, tr.difference th { border-bottom: 0; color: #444 }
small { color: #555 }
.scroll { overflow-x: auto }
.reduced { background: #fff3c4; border: 1px solid #b58900; padding: 0 .3em; color: #111 }
code { background: #f3f3f3; overflow-wrap: anywhere }
img { max-width: 100%; height: auto }
figure { margin: 1em 0 }
"""


_WITHOUT_PLOTLY = (
    "<p>These figures are pictures, as Plotly is not installed. With <code>pip install dash plotly</code> "
    "they are those of the dashboard, with values to read off.</p>"
)


def page(results: list[Run], tables: list[Table], pictures: list[Picture] | list[str], problems: list[str]) -> str:
    """The whole file. ``pictures``: as drawn by matplotlib, or as HTML by Plotly. ``problems``: a sentence each."""
    parts = [
        "<h1>Runs of ima_dist beside the paper</h1>",
        _introduction(results, tables, problems),
        *(_table(number, table) for number, table in enumerate(tables)),
        "<h2 id='figures'>Figures</h2>",
        *(p if isinstance(p, str) else _picture(p) for p in pictures),
        "" if any(isinstance(p, str) for p in pictures) else _WITHOUT_PLOTLY,
        "<h2 id='runs'>Runs</h2>",
        *map(_run, results),
        _own_settings(results),
    ]
    title = f"ima_dist report: {len(results)} run{'s' * (len(results) != 1)}"
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<footer><p><small>Made by ima_dist {escape(__version__)}.</small></p></footer>\n</body></html>\n"
    )


def _introduction(results: list[Run], tables: list[Table], problems: list[str]) -> str:
    links = [f"<li><a href='#t{i}'>{escape(table.title)}</a></li>" for i, table in enumerate(tables)]
    links += [
        "<li><a href='#figures'>Figures</a></li>",
        "<li><a href='#runs'>Runs</a></li>",
        "<li><a href='#ours'>Settings that are ours</a></li>",
    ]
    text = (
        f"<p>{len(results)} finished run{'s' * (len(results) != 1)}. Accuracies are shares of correctly classified "
        "test samples. In brackets: the 95 % Wilson interval, which says how far chance in the choice of test samples "
        "reaches; differences smaller than that mean nothing. Where runs differ in their seed alone, their mean stands "
        "there, with ± the standard deviation over the seeds.</p>"
        "<p><span class='reduced'>reduced</span> marks runs that differ from the paper's experiment: smaller, shorter, "
        "attacked less, or otherwise changed, as stated beside it. Their figures are not a reproduction of the "
        "paper's.</p>"
    )
    if problems:
        text += "<h2>Left out</h2>" + _list(map(escape, problems))
    return text + f"<nav aria-label='Contents'><ul>{''.join(links)}</ul></nav>"


def _table(number: int, table: Table) -> str:
    keys = table.keys
    head = "".join(f"<th scope='col'>{_column(key)}</th>" for key in keys)
    body = "".join(_rows(line, keys) for line in table.lines)
    file = "" if table.number is None else f"The same in {table_file(table.number)}."
    caption = f"{escape(table.title)}: accuracy by noise level. {file}"
    head = "<th scope='col'>row</th><th scope='col'>attack</th><th scope='col'>samples</th>" + head
    parts = [
        f"<h2 id='t{number}'>{escape(table.title)}</h2>",
        f"<div class='scroll'><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>",
    ]
    if table.number == 15:
        parts.append("<p>Differences are sizes, without a sign, as in the paper.</p>")
    if any(cell.legible == "guess" for line in table.lines for cell in line.theirs.values()):
        parts.append("<p>* A digit of the paper's number was inferred: our source is a scan.</p>")
    runs = list({r.name: r for line in table.lines for r in line.results}.values())
    for result in runs:
        if {line.attack for line in table.lines if result in line.results} >= {"spsa", "pgd100"}:
            parts.append(_obfuscation(result))
    attacks = dict.fromkeys(describe_attack(line.point.to_json()) for line in table.lines if line.point)
    parts.append("<h3>Attacks</h3>" + _list(escape(text) + "." for text in attacks))
    parts.append("<h3>Commands</h3>" + _list(f"{escape(r.name)}: {_command(r)}" for r in runs))
    return "\n".join(parts)


def table_file(number: int) -> str:
    """Name of a table's CSV file."""
    return f"table{number:02d}.csv"


def _column(key: Key) -> str:
    split, level = key
    return escape(format_noise(level)) + (" (val)" if split == "validation" else "")


def _rows(line: Line, keys: list[Key]) -> str:
    seeds = ", ".join(str(r.config.seed) for r in line.results)
    name = f"{escape(line.row)} <small>seed{'s' * (len(line.results) > 1)} {seeds}</small>"
    if line.differs:
        differs = "".join(f"<br><small>{escape(text)}</small>" for text in line.differs)
        name += f" <span class='reduced'>reduced</span>{differs}"
    samples = {m.samples for m in line.ours.values() if m.samples is not None}
    count = f"{min(samples):,}" if samples else ""
    rows = []
    if line.results:
        rows = [("ours", name, line.attack, count, [_ours(line.ours.get(key)) for key in keys])]
    if line.theirs:
        cells = [line.theirs.get(key) for key in keys]
        theirs = ["-" if c is None else f"{c.accuracy:.4f}{'*' * (c.legible == 'guess')}" for c in cells]
        differences = [
            f"{line.ours[key].accuracy - line.theirs[key].accuracy:+.4f}"
            if key in line.ours and key in line.theirs
            else "-"
            for key in keys
        ]
        if line.results:
            rows += [("paper", "paper", "", "", theirs), ("difference", "difference", "", "", differences)]
        else:
            rows = [
                (
                    "paper",
                    f"{escape(line.row)} <small>the paper's; none of ours under this attack</small>",
                    line.attack,
                    "",
                    theirs,
                )
            ]
    return "".join(
        f"<tr class='{kind}'><th scope='row'>{title}</th><td>{escape(attack)}</td><td>{count}</td>"
        + "".join(f"<td>{value}</td>" for value in values)
        + "</tr>\n"
        for kind, title, attack, count, values in rows
    )


def _ours(measured: Measured | None) -> str:
    if measured is None:
        return "-"
    text = f"{measured.accuracy:.4f}"
    if measured.spread is not None:
        text += f" ± {measured.spread:.4f}"
    if measured.interval:
        text += f"<br><small>[{measured.interval[0]:.4f}, {measured.interval[1]:.4f}]</small>"
    return text


def _obfuscation(result: Run) -> str:
    levels = obfuscation.compared(result, result.config.epochs)
    if not levels:
        return ""
    head = "".join(f"<th scope='col'>{escape(format_noise(level.noise))}</th>" for level in levels)
    rows = (
        "<tr><th scope='row'>SPSA</th>" + "".join(f"<td>{level.spsa:.4f}</td>" for level in levels) + "</tr>"
        "<tr><th scope='row'>PGD</th>" + "".join(f"<td>{level.pgd100:.4f}</td>" for level in levels) + "</tr>"
    )
    return (
        f"<h3>Gradient obfuscation: {escape(label(result))} ({escape(result.name)})</h3>"
        f"<div class='scroll'><table><caption>Accuracy under black-box and white-box attack on the same samples"
        f"</caption><thead><tr><th scope='col'>noise</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"<p>{escape(obfuscation.verdict(levels))}</p>"
    )


def _picture(picture: Picture) -> str:
    return (
        f"<figure><h3>{escape(picture.heading)}</h3>{_image(picture.png, picture.alt)}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _image(png: bytes, alt: str) -> str:
    return f"<img alt='{escape(alt)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _run(result: Run) -> str:
    config, summary = result.config, result.summary
    differs = setting_differences(config, {"seed"})
    facts = {
        "Command": _command(result),
        "Setting": escape("; ".join(differs) or "the paper's"),
        "Network": escape(config.model.factory),
        "Parameters": _count(summary.get("parameters")),
        "Accuracy without noise": _share(summary.get("clean_accuracy")),
        "Duration": _duration(summary.get("wall_seconds")),
    }
    if differs:
        facts["Setting"] = f"<span class='reduced'>reduced</span> {facts['Setting']}"
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    text = f"<h3>{escape(result.name)}</h3><dl>{items}</dl>"
    if result.equilibrium_picture:
        text += _image(result.equilibrium_picture, f"Equilibrium of the noisy samples of {result.name}.")
    return text


def _own_settings(results: list[Run]) -> str:
    presets = {result.config.preset for result in results}
    settings = [escape(text) for names, text in OWN_SETTINGS if presets & set(names)]
    return (
        "<h2 id='ours'>Settings that are ours</h2><p>The paper leaves these open for the data sets shown here.</p>"
        + _list(settings)
    )


def _command(result: Run) -> str:
    return f"<code>{escape(train_command(result.config, result.name))}</code>"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "not recorded"


def _share(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "not recorded"


def _duration(value: object) -> str:
    return f"{value:,.0f} s" if isinstance(value, int | float) else "not recorded"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
