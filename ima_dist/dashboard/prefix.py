"""Behind a proxy that gives the dashboard a part of its own addresses, such as /node/n1/8050/.

Some proxies hand on the whole path (Open OnDemand's /node, Jupyter's /proxy/absolute), others without their own part
(nginx with a slash at the end of proxy_pass, Jupyter's /proxy, Open OnDemand's /rnode). Both work.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from ima_dist.config.errors import ConfigError

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def checked(prefix: str) -> str:
    """``prefix`` with slashes around it. Raises ConfigError if it is not a path of plain characters."""
    path = f"/{prefix.strip('/')}/" if prefix.strip("/") else "/"
    if not re.fullmatch(r"/([\w~@%+=-][\w.~@%+=-]*/)*", path, re.ASCII):
        raise ConfigError(f"--prefix must be a path such as /node/n1/8050/, not {prefix!r}.")
    return path


class Prefixed:
    """An application whose addresses, for the browser, begin with ``prefix``."""

    def __init__(self, application: _Application, prefix: str) -> None:
        self._application, self._prefix = application, prefix.rstrip("/")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == self._prefix:  # relative links need the slash
            query = environ.get("QUERY_STRING")
            start_response("308 Permanent Redirect", [("Location", f"{path}/" + (f"?{query}" if query else ""))])
            return [b""]
        if path.startswith(f"{self._prefix}/"):
            path = path.removeprefix(self._prefix)
        return self._application({**environ, "SCRIPT_NAME": self._prefix, "PATH_INFO": path}, start_response)
