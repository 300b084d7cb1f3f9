"""Links between views in the texts of the dashboard, written as ``[Compare](compare)``."""

import re
from collections.abc import Iterator

from ima_dist.dashboard.state import State

_LINK = re.compile(r"\[([^][]+)\]\(([a-z#]+)\)")


def parsed(text: str) -> Iterator[tuple[str, str, str]]:
    """Pieces of a text: words, and the title and the target of the link that follows them ("" after the last)."""
    place = 0
    for found in _LINK.finditer(text):
        yield text[place : found.start()], found[1], found[2]
        place = found.end()
    yield text[place:], "", ""


def plain(text: str) -> str:
    """The text as it is read."""
    return "".join(words + title for words, title, _ in parsed(text))


def carried(state: State) -> State:
    """The state with the run of one view for those that show several, and the first of several for those of one."""
    one, several = state.get("run", [])[:1], state.get("runs", [])
    return {**state, "run": one or several[:1], "runs": several or one}
