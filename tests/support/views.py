"""The dashboard's views as data: their parts, and a client for requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from ima_dist.dashboard.app import make_app
from ima_dist.dashboard.choosing import look
from ima_dist.dashboard.parts import Grid, Note, Part, Plot
from ima_dist.dashboard.shown import values_of
from ima_dist.dashboard.state import parse
from ima_dist.dashboard.views import VIEWS
from ima_dist.tracking.collection import Collection


def client(root: Path, token: str | None = None) -> FlaskClient:
    return make_app(root, token).server.test_client()


def show(root: Path, view: str, search: str = "") -> list[Part]:
    runs = look(Collection(root))
    return VIEWS[view].show(runs, values_of(VIEWS[view].controls(runs, parse(search))))


def plots(parts: list[Part]) -> dict[str, Any]:
    return {p.name: p.figure for p in parts if isinstance(p, Plot)}


def grid(parts: list[Part], name: str) -> list[dict[str, Any]]:
    (found,) = [p.rows for p in parts if isinstance(p, Grid) and p.name == name]
    return found


def notes(parts: list[Part]) -> str:
    return " ".join(p.text for p in parts if isinstance(p, Note))
