"""The views that one opens every morning, on a directory of many runs: what they say against the Parquet data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ima_dist.dashboard.parts import Command, Facts, Gallery, Grid, Lines, Note, Panel, Part, Side
from ima_dist.dashboard.terms import under
from ima_dist.dashboard.views import VIEWS
from ima_dist.results.importance import importance
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.notes import Notes, write_notes
from ima_dist.tracking.collection import Collection, update
from tests.support.many_runs import SWEEP, Made, make_many
from tests.support.views import grid, notes, plots, show


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    root = tmp_path_factory.mktemp("many") / "runs"
    return root, make_many(root, 60)


def flat(parts: list[Part]) -> list[Part]:
    return [
        p for part in parts for p in (flat([q for c in part.columns for q in c]) if isinstance(part, Side) else [part])
    ]


def of(parts: list[Part], kind: type, **wanted: str) -> Any:
    (found,) = [p for p in flat(parts) if isinstance(p, kind) and all(getattr(p, k) == v for k, v in wanted.items())]
    return found


def curves(root: Path, *runs: str) -> pd.DataFrame:
    found = pd.read_parquet(root / "dataset" / "curves")
    return found[found.run.isin(runs) & (found.loss == "both")] if runs else found[found.loss == "both"]


# ---- home ----------------------------------------------------------------------------------------------


def test_home_says_what_runs_what_ended_badly_and_what_to_do(many):
    root, made = many
    parts = show(root, "home")
    running, badly = of(parts, Panel, name="running"), of(parts, Panel, name="badly")
    assert running.heading == f"Running ({len(made.running)})"
    assert {item.title for item in running.items} <= set(made.running)
    item = running.items[0]
    assert 0 < (item.share or 0) < 1
    assert "epoch " in item.text
    assert "left" in item.text
    assert "worker" in item.text
    ended = {*made.failed, *made.died, *made.interrupted, "half"}
    assert badly.heading == f"Failed, died or interrupted ({len(ended)})"
    assert badly.more == (f"all {len(ended)}", "runs?status=failed&status=died&status=damaged&status=interrupted")
    for item in badly.items:
        assert item.title in ended
        assert item.text
        # Those that failed would fail again.
        none = item.title in {*made.failed, "half"}
        assert item.command == ("" if none else f"python -m ima_dist.train --resume {root / item.title}")
        assert ("would fail again" in item.caution) == (item.title in made.failed)
        assert "string starting at" not in item.text


def test_home_shows_the_best_of_each_data_set_and_norm(many):
    root, made = many
    found = curves(root, *made.finished).assign(level=lambda c: c.noise.round(6))
    kinds = pd.read_parquet(root / "dataset" / "runs").set_index("run")[["preset", "norm"]]
    items = of(show(root, "home"), Panel, name="best").items
    sign = {"linf": "L∞", "l2": "L2"}
    assert {item.text.split(":")[0] for item in items} == {
        f"{p}, {sign[n]}" for p, n in kinds.loc[made.finished].drop_duplicates().values
    }
    for item in items:
        kind, _, text = item.text.partition(": ")
        preset, norm = kind.split(", ")
        own = [r for r in made.finished if kinds.preset[r] == preset and sign[kinds.norm[r]] == norm]
        accuracy, _, rest = text.partition(" [")
        attack, level = rest.split(" under ")[1].split(" · ")[0].split(" at ε ")
        attack = attack.strip("“”")
        there = found[found.run.isin(own) & (found.attack == attack) & (found.level == round(float(level), 6))]
        best = there.loc[there.accuracy.idxmax()]
        assert accuracy == f"{best.accuracy:.3f}"
        assert item.title == best.run
        assert rest.startswith(f"{best.low95:.3f}, {best.high95:.3f}]")
        assert item.tag == (f"best of {len(there)}" if len(there) > 1 else "the only one")


def test_home_does_not_say_that_nothing_is_missing(many):
    root, _ = many
    items = of(show(root, "home"), Panel, name="warnings").items
    assert [item.title for item in items[:2]] == ["4 files could not be read", "half"]
    assert "damaged" in items[1].tag


# ---- the list, and the comparison ----------------------------------------------------------------------


def test_the_list_is_filtered_by_all_that_it_shows(many):
    root, made = many
    stored = pd.read_parquet(root / "dataset" / "runs").set_index("run")
    rows = grid(show(root, "runs"), "runs")
    assert len(rows) == len(stored)
    began = [row["began"] for row in rows if row["status"] == "running"]
    assert [row["status"] for row in rows[: len(began)]] == ["running"] * len(began)
    assert began == sorted(began, reverse=True)
    ended = [row["ended"] for row in rows if row["ended"]]
    assert ended == sorted(ended, reverse=True)
    best = next(row for row in rows if "robust accuracy" in row)
    assert set(best) >= {"attack", "noise level ε", "95 % interval"}
    own = stored[(stored.method == "ima") & (stored.norm == "linf") & (stored.preset == "moons")]
    search = "?method=ima&norm=linf&data=moons"
    assert {row["run"] for row in grid(show(root, "runs", search), "runs")} == set(own.index)
    beta = f"{own[own.status == 'finished'].beta.iloc[0]:g}"
    chosen = {row["run"] for row in grid(show(root, "runs", f"{search}&beta={beta}&status=finished"), "runs")}
    assert chosen == set(own[(own.beta == float(beta)) & (own.status == "finished")].index)
    eps = f"{own.eps_max.iloc[0]:g}"
    assert {r["ε_max"] for r in grid(show(root, "runs", f"?eps={eps}"), "runs")} == {float(eps)}
    assert {r["run"] for r in grid(show(root, "runs", "?text=nan%20OPTIMIZER"), "runs")} == set(made.failed)
    assert "No run is like that" in notes(show(root, "runs", "?text=nothing-like-it"))
    died = grid(show(root, "runs", "?status=died"), "runs")
    assert {row["run"] for row in died} == set(made.died)
    assert all("written nothing for" in row["message"] or "ended without a word" in row["message"] for row in died)
    name = made.finished[-1]
    write_notes(RunDir(root / name), Notes("the one for the paper", ("paper", "best so far")))
    assert [r["tags"] for r in grid(show(root, "runs", "?tag=paper"), "runs")] == ["paper, best so far"]
    assert [r["run"] for r in grid(show(root, "runs", "?text=one%20for"), "runs")] == [name]
    (browser,) = [p for p in show(root, "runs", "?columns=seed&columns=where") if getattr(p, "name", "") == "runs"]
    assert browser.columns == ["run", "seed", "where"]


def test_runs_are_compared_on_the_same_samples(many):
    root, made = many
    stored = pd.read_parquet(root / "dataset" / "runs").set_index("run").loc[made.finished]
    first, second = stored[(stored.preset == "fashion_mnist") & (stored.norm == "linf")].index[:2]
    other = stored[stored.preset == "moons"].index[0]
    parts = show(root, "compare", f"?runs={first}&runs={second}&runs={other}&attack=pgd100&at=0.15")
    assert f"left out: {other}" in notes(parts)
    differ = {row["option"]: (row[first], row[second]) for row in grid(parts, "options")}
    a, b = (RunDir(root / name).config() for name in (first, second))
    assert differ["method"] == (a.method, b.method) or "method" not in differ
    assert all(own != theirs for own, theirs in differ.values())
    assert f"They differ in {len(differ)} option" in notes(parts)
    assert "data set fashion_mnist, norm L∞" in notes(parts)

    def right(name: str) -> np.ndarray:
        own = pd.read_parquet(root / name / "outcomes.parquet")
        own = own[(own.attack == "pgd100") & (own.noise.round(6) == 0.15)].sort_values("index")
        return (own.label == own.prediction).to_numpy()

    (row,) = grid(parts, "paired")
    mine, theirs = right(first), right(second)
    assert (row["only first right"], row["only second right"]) == ((mine & ~theirs).sum(), (theirs & ~mine).sum())
    assert row["difference"] == pytest.approx(mine.mean() - theirs.mean())
    low, high = map(float, row["95 % interval"].strip("[]").split(", "))
    assert low <= row["difference"] <= high
    assert row["p"] == "< 0.0001" or 1e-4 <= float(row["p"]) <= 1
    (verdict,) = [part for part in parts if isinstance(part, Note) and "on the same 200 samples" in part.text]
    assert verdict.text.startswith((first, second))
    assert "under pgd100 at ε 0.15" in verdict.text
    assert "margin_rule" not in verdict.text
    assert parts.index(verdict) < min(i for i, part in enumerate(parts) if getattr(part, "name", "") == "results")
    lines = {t.name: list(t.y) for t in plots(parts)["accuracy"].data if t.showlegend is not False}
    own = curves(root, first).query("attack == 'pgd100'").sort_values("noise")
    assert lines[first] == own.accuracy.tolist()


# ---- one run -------------------------------------------------------------------------------------------


def test_one_run_has_its_confusion_its_options_and_its_commands(many):
    root, made = many
    name = next(n for n in made.finished if n.startswith("fashion_mnist"))
    parts = flat(show(root, "run", f"?run={name}&attack=pgd100&at={float(curves(root, name).noise.max())!r}"))
    own = pd.read_parquet(root / name / "outcomes.parquet").query("attack == 'pgd100'")
    clean, attacked = plots(parts)["confusion"].data
    assert (attacked.x[0], attacked.y[9]) == ("T-shirt/top", "Ankle boot")
    for trace, level in ((clean, 0.0), (attacked, own.noise.max())):
        rows = own[own.noise == level]
        counts = pd.crosstab(rows.label, rows.prediction).reindex(range(10), fill_value=0)
        assert np.array_equal(np.array(trace.text), counts.reindex(columns=range(10), fill_value=0).to_numpy())
    config = RunDir(root / name).config()
    assert ("method", config.method) in of(parts, Facts, name="given").pairs
    commands = {p.label: p.text for p in parts if isinstance(p, Command)}
    assert (
        commands["export"]
        == f"python -m ima_dist.export {root / name} --epoch {config.epochs} --to exports/{Path(name).name}"
    )
    assert set(commands) == {"evaluate", "export"}
    running = next(n for n in made.running if n.startswith(SWEEP))
    parts = flat(show(root, "run", f"?run={running}"))
    assert "epoch 2/8" in of(parts, Lines, name="log").text
    assert {p.label for p in parts if isinstance(p, Command)} == {"continue", "evaluate", "export"}
    died = flat(show(root, "run", f"?run={made.died[0]}"))
    assert dict(of(died, Facts, name="standing").pairs)["status"].startswith("died. Its process ")


# ---- samples and sweeps --------------------------------------------------------------------------------


def test_samples_are_listed_in_the_order_in_which_they_are_lost(many):
    root, made = many
    name = next(n for n in made.finished if (root / n / "examples" / "flips.npz").exists())
    own = pd.read_parquet(root / name / "outcomes.parquet").query("attack == 'pgd100'")
    lost = own[own.label != own.prediction].groupby("index").noise.min()
    order = lost.reset_index().sort_values(["noise", "index"])["index"].tolist()
    seen: list[int] = []
    for page in (1, 2):
        seen += [r["index"] for r in grid(show(root, "samples", f"?run={name}&attack=pgd100&page={page}"), "samples")]
    assert seen == order[:50]
    rows = grid(show(root, "samples", f"?run={name}&attack=pgd100&label=3"), "samples")
    labels = own.set_index("index").label
    assert {labels[[r["index"]]].iloc[0] for r in rows} == {3}
    gallery = of(show(root, "samples", f"?run={name}&attack=pgd100"), Gallery, name="lost-first")
    heading, pictures, address = gallery.cells[0]
    assert len(pictures) == 3
    assert all(p.source.startswith("data:image/png;base64,") for p in pictures)
    arrays = np.load(root / name / "examples" / "flips.npz", allow_pickle=False)
    first = arrays["noise"].argmin()
    before, after = (arrays["class_names"][arrays[key][first]] for key in ("label", "prediction"))
    assert heading == f"{before} → {after}, ε {arrays['noise'][first]:g}"
    assert pictures[0].caption == f"sample {arrays['index'][first]}"
    shown = of(show(root, "samples", f"?run={name}&attack=pgd100"), Gallery, name="lost-first")
    assert f"misclassified {under(str(arrays['attack']))}" in shown.caption
    assert under(str(arrays["attack"])) in shown.heading
    assert ("not for pgd100" in shown.about) == (str(arrays["attack"]) != "pgd100")
    assert f"of the {len(arrays['index'])} samples whose images are kept" in shown.caption
    assert address.startswith("sample?run=")
    counts = plots(show(root, "samples", f"?run={name}&attack=pgd100"))["lost"].data
    assert sum(sum(trace.y) for trace in counts) == own["index"].nunique()


def test_images_of_another_attack_say_so(many):
    root, made = many
    stored = {n: np.load(p)["attack"] for n in made.finished if (p := root / n / "examples" / "flips.npz").exists()}
    name = next(n for n, attack in stored.items() if attack == "worst")
    other = of(show(root, "samples", f"?run={name}&attack=pgd100"), Gallery, name="lost-first")
    assert other.heading == "Stored images: misclassified first under the attack “worst”, not under pgd100"
    assert "for the strictest of its attacks only" in other.about
    own = of(show(root, "samples", f"?run={name}&attack=worst"), Gallery, name="lost-first")
    assert own.heading == "Misclassified first under the attack “worst”"
    assert own.about.startswith("Above each image")


def test_a_sweep_says_what_was_tried_what_is_best_and_what_matters(many):
    root, made = many
    parts = flat(show(root, "sweep", f"?sweep={SWEEP}&attack=pgd100&level=0.15"))
    trials = grid(parts, "trials")
    assert len(trials) == 12
    assert "seed" in of(parts, Grid, name="trials").columns
    assert sorted(t["status"] for t in trials) == ["failed", *["finished"] * 9, "not begun", "running"]
    own = [n for n in made.finished if n.startswith(SWEEP)]
    found = curves(root, *own).query("attack == 'pgd100'")
    best = found[found.noise.round(6) == 0.15].accuracy.max()
    (said,) = [p.text for p in parts if isinstance(p, Note) and p.text.startswith("Highest")]
    assert f"robust accuracy {best:.3f}" in said
    assert "beyond chance" in said
    robust = [t["robust accuracy"] for t in trials if "robust accuracy" in t]
    assert robust == sorted(robust, reverse=True)
    assert (len(robust), robust[0]) == (9, best)
    assert ("no difference was found" in said) == (plots(parts)["importance"].data[0].marker.color == "#bbb")
    assert "this holds for these networks only" in said  # one seed of each
    commands = {p.label: p.text for p in parts if isinstance(p, Command)}
    assert commands["choose"].endswith("--min-clean 0 --attack pgd100 --noise 0.15")
    assert f"sweep --resume {root / SWEEP}" in commands["continue"]
    beta = float(said.split("β ")[1].split(",")[0])
    assert f"--beta {beta:g}" in commands["train"]
    shares = plots(parts)["importance"].data[0]
    assert set(shares.y) == {"β", "ε_max"}
    assert sum(shares.x) == pytest.approx(1.0)
    points = [t for t in plots(parts)["front"].data if t.name == "tried"]
    assert len(points[0].x) == len(own)


def test_importance_is_told_from_enough_results_only():
    values = [{"beta": b / 10, "method": m} for b in range(6) for m in ("ima", "adv")]
    shares = importance(values, [v["beta"] for v in values])
    assert next(iter(shares)) == "beta"
    assert shares["beta"] > 0.9
    assert importance(values[:7], [0.1 * i for i in range(7)]) == {}
    assert importance(values, [0.5] * 12) == {}
    assert importance([], []) == {}


def test_nothing_of_ours_is_called_unreadable(many):
    root, _ = many
    update(root / SWEEP)  # a sweep below a results directory may have a data set of its own
    runs = Collection(root)
    runs.refresh()
    strangers = ("other-tool", "old-results", "half", "table.parquet")
    assert len(runs.problems) == len(strangers)
    assert all(any(name in problem for name in strangers) for problem in runs.problems)


@pytest.mark.parametrize("view", VIEWS)
def test_views_stand_what_is_damaged_and_odd(many, view):
    root, _ = many
    for search in ("?run=half&runs=half", "?sweep=../..&attack=none&at=x&level=nan&page=99&label=-1&columns=none"):
        assert show(root, view, search)
