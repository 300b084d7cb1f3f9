"""Functions of notebooks and scripts: kept as a module, or refused with what to do."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ima_dist.cli.given_code import given
from ima_dist.config.errors import ConfigError
from tests.support import notebooks, user_code

CELL = """
import torch
from torch import nn as layers
from tests.support.user_code import three_way

WIDTH, x = 4, torch.zeros(3)

class Block(layers.Module):
    def __init__(self, a, b):
        super().__init__()
        x = WIDTH
        self.inner = layers.Linear(a, b)

    def forward(self, x):
        return torch.relu(self.inner(x))

def body(width):
    return [Block(width, WIDTH)]

def plain(num_classes, input_shape):
    return layers.Sequential(*body(input_shape[0]), layers.Linear(WIDTH, num_classes))

def closing_over(depth):
    def build(num_classes, input_shape):
        return layers.Sequential(*[layers.Linear(2, 2) for _ in range(depth)])
    return build

closure = closing_over(3)
two = (lambda c, s: layers.Linear(s[0], c)), (lambda c, s: layers.Linear(s[0], c,
                                                                         bias=False))
other = lambda c, s: three_way(c, s)

class Net(Block):
    def __init__(self, num_classes, input_shape):
        super().__init__(input_shape[0], num_classes)

def needs_array(c, s):
    return layers.Linear(len(x), c)

def needs_nothing(c, s):
    return nowhere(c)
"""


def cell(text: str = CELL, name: str = "<cell of the test>") -> dict[str, Any]:
    """The names of a notebook in which this cell has been run."""
    with notebooks.as_main() as names:
        notebooks.run_cell(text, name, names)
        return dict(names)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("plain", [nn.Linear]), ("closure", [nn.Linear] * 3), ("other", [nn.Linear, nn.Tanh, nn.Linear]), ("Net", None)],
)
def test_what_a_function_needs_is_kept_with_it(name, layers):
    found = given(cell()[name], "network")
    alone: dict[str, Any] = {"__name__": "elsewhere"}
    exec(found.source, alone)
    module, function = found.reference.split(":")
    for build in (alone[function], getattr(sys.modules[module], function)):
        network = build(2, (2,))
        assert network(torch.zeros(1, 2)).shape == (1, 2)
        assert layers is None or len(network) in (len(layers), 2)
    assert "needs_array" not in found.source


def test_the_name_follows_from_the_source():
    first, second = (cell(name=f"<{number}>")["plain"] for number in (1, 2))
    wider = cell(CELL.replace("WIDTH, x = 4", "WIDTH, x = 5"))["plain"]
    names = [given(function, "network").reference for function in (first, second, wider)]
    assert names[0] == names[1] != names[2]
    assert names[0].endswith(":plain")


def test_of_two_lambdas_in_one_statement_the_right_one_is_kept():
    biases = []
    for function in cell()["two"]:
        alone: dict[str, Any] = {}
        exec(given(function, "network").source, alone)
        biases.append(alone["build"](2, (2,)).bias)
    assert biases[0] is not None
    assert biases[1] is None


def test_functions_of_modules_are_named():
    assert given(user_code.three_way, "network") == ("tests.support.user_code:three_way", None)
    assert given("mine:build", "network") == ("mine:build", None)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda: cell()["needs_array"], "it uses x, a Tensor of this session: put it into a module"),
        (lambda: cell()["needs_nothing"], "it uses nowhere, which does not exist"),
        (lambda: eval("lambda c, s: None"), "the source of <lambda> cannot be found: put it into a module"),
        (lambda: nn.Linear(2, 2), "must be a function that builds the network, .* not a Linear"),
        (lambda: partial(user_code.three_way), "not a partial: give the function or class, and its arguments as"),
    ],
)
def test_what_no_file_can_have_is_refused(function, why):
    with pytest.raises(ConfigError, match=why):
        given(function(), "network")
