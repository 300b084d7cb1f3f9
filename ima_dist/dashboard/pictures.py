"""The PNG files of a run's ``figures``, by the name of the run and their own."""

import re
from urllib.parse import urlencode

from flask import Flask, Response, abort, request

from ima_dist.config.errors import ConfigError
from ima_dist.dashboard.choosing import look
from ima_dist.rundir.files import inside, read_picture
from ima_dist.rundir.run import Run
from ima_dist.tracking.collection import Collection

_NAME = re.compile(r"[\w-]{1,80}\.png", re.ASCII)


def picture_names(run: Run) -> list[str]:
    """The names of a run's pictures."""
    try:
        found = sorted(path.name for path in inside(run.dir.path, run.dir.figures_dir).iterdir())
    except (ConfigError, OSError):
        return []
    return [name for name in found if _NAME.fullmatch(name)]


def address_of(run: Run, name: str) -> str:
    """The address of a picture within the page."""
    return "picture?" + urlencode({"run": run.name, "name": name})


def add_pictures(server: Flask, runs: Collection) -> None:
    @server.get("/picture")
    def picture() -> Response:
        run, name = look(runs).runs.get(request.args.get("run", "")), request.args.get("name", "")
        if run is None or not _NAME.fullmatch(name):
            abort(404)
        try:
            data = read_picture(inside(run.dir.path, run.dir.figures_dir / name))
        except (ConfigError, OSError):
            abort(404)
        return Response(data, mimetype="image/png", headers={"Cache-Control": "no-cache"})
