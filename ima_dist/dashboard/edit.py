"""Notes and tags of a run, written from the page: with ``--edit`` only, and the only thing that the page writes."""

from typing import Any

from dash import ALL, Dash, Input, Output, State, no_update

from ima_dist.config.errors import ConfigError
from ima_dist.dashboard.choosing import look
from ima_dist.rundir.files import sentence
from ima_dist.rundir.notes import Notes, tags_in, write_notes
from ima_dist.tracking.collection import Collection


def add_editing(app: Dash, runs: Collection) -> None:
    # Patterns, as the parts are there in one view only.
    @app.callback(
        Output({"note": ALL}, "children"),
        Input({"note": ALL}, "n_clicks"),
        State({"note": ALL}, "value"),
        State({"note": ALL}, "data"),
        State({"note": ALL}, "id"),
        prevent_initial_call=True,
    )
    def save(clicks: list[Any], values: list[Any], data: list[Any], ids: list[dict[str, str]]) -> list[Any]:
        names = [i["note"] for i in ids]
        places = {name: place for place, name in enumerate(names)}
        answer: list[Any] = [no_update] * len(names)
        if "save" in places and clicks[places["save"]]:
            answer[places["said"]] = _saved(
                runs, str(data[places["run"]]), values[places["text"]], values[places["tags"]]
            )
        return answer


def _saved(runs: Collection, name: str, text: Any, tags: Any) -> str:
    """Write the notes of a run; a sentence for the user."""
    run = look(runs).runs.get(name)
    if run is None:
        return "There is no such run any more."
    try:
        write_notes(run.dir, Notes(str(text or ""), tags_in(str(tags or ""))))
    except (ConfigError, OSError) as error:
        return f"Not saved: {sentence(error)}"
    return "Saved."
