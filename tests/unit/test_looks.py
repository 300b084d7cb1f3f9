"""Colours of figures: of a method, wherever it stands."""

from __future__ import annotations

import pytest

from ima_dist.figures.interactive.accuracy import Series, accuracy_figure
from ima_dist.figures.interactive.style import looks
from ima_dist.figures.interactive.tradeoff import Point, parallel_figure, tradeoff_figure
from ima_dist.figures.interactive.training import Trained, training_figure


def test_a_method_has_one_colour_wherever_it_stands():
    first, second = looks(["ima", "ce"]), looks(["adv", "ce", "ima"])
    assert (first[0], first[1]) == (second[2], second[1])
    same = looks(["ima"] * 4)
    assert len({(look.colour, look.dash) for look in same}) == 4
    assert {look.symbol for look in same} == {first[0].symbol}
    assert same[0] == first[0]
    others = looks(["", "", ""])  # say of several attacks on one network
    assert len({look.colour for look in others}) == 3


def test_figures_agree_on_it():
    series = [Series(m, [0.0], [1.0], [0.9], [1.0], {}, m) for m in ("ce", "ima")]
    lines = {t.name: t.line.color for t in accuracy_figure(series, ["linf"]).data if t.showlegend is not False}
    points = [Point(m, m, 1.0, (0.9, 1.0), 0.5, (0.4, 0.6)) for m in ("adv", "ima", "ce")]
    plane = {t.name: t.marker.color for t in tradeoff_figure(points, [0], "robust").data[1:]}
    assert {m: plane[m] for m in lines} == lines
    parallel = parallel_figure({"clean accuracy": [1.0, 1.0, 0.9]}, ["ce", "ima", "ce"]).data[0].line
    assert list(parallel.color) == [0, 1, 0]
    assert [shade for _, shade in parallel.colorscale] == [lines["ce"], lines["ima"]]


def test_points_of_equal_accuracy_stand_apart_and_keep_their_intervals():
    points = [Point(m, m, 1.0, (0.9, 1.0), y, (0.4, 0.6)) for m, y in (("ima", 0.5), ("ce", 0.55))]
    _, ima, ce = tradeoff_figure(points, [1], "robust").data
    assert ima.x[0] < ce.x[0] == 1  # never beyond 1
    assert (ima.customdata[0], ce.customdata[0]) == (1.0, 1.0)
    assert ima.x[0] + ima.error_x.array[0] == pytest.approx(1.0)
    assert ce.error_x.array[0] == 0


def test_axes_of_options_have_ticks_that_do_not_collide():
    (values,) = parallel_figure({"x": [0.1, 0.101, 0.5, 0.899, 0.9]}, ["ima"] * 5).data[0].dimensions
    assert list(values.ticktext) == ["0.1", "0.5", "0.9"]


def test_the_axis_of_accuracies_fits_them_and_stars_stand_side_by_side():
    history = [{"epoch": e, "val_accuracy": 0.9 + e / 100, "train_accuracy": 0.9, "train_loss": 0.1} for e in (1, 2, 3)]
    fig = training_figure([Trained("a", history, 3, "ima"), Trained("b", history, 3, "ce")], 0.92)
    low, high = fig.layout.yaxis.range
    assert 0.85 < low < 0.9
    assert 0.93 < high < 1
    stars = [t.x[0] for t in fig.data if t.marker.symbol == "star"]
    assert stars[0] < 3 < stars[1]
    assert fig.layout.annotations[0].text == "threshold 0.92"
