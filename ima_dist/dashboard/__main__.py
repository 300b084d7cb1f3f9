"""``python -m ima_dist.dashboard RESULTS_DIR``: show the runs of a directory in a browser."""

import importlib.util
import logging
import socket
import sys
from pathlib import Path

from ima_dist.cli.entry import existing, guarded, say
from ima_dist.cli.parser import OneLineParser
from ima_dist.config.errors import EXIT_DONE, ConfigError
from ima_dist.dashboard.prefix import checked

_PORT = 8050


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.dashboard", description=__doc__, allow_abbrev=False)
    parser.add_argument("results", metavar="RESULTS_DIR", help="directory that contains runs")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, for this machine only)"
    )
    parser.add_argument("--port", type=int, default=_PORT, help=f"port to listen on (default: {_PORT}; 0: any free)")
    parser.add_argument(
        "--prefix",
        default="/",
        metavar="PATH",
        help="where a proxy shows the dashboard, such as /node/n1/8050/ (Open OnDemand, JupyterHub, nginx)",
    )
    parser.add_argument("--edit", action="store_true", help="let notes and tags of runs be written in the page")
    arguments = parser.parse_args(argv)
    prefix = checked(arguments.prefix)
    root: Path = existing(arguments.results).absolute()
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory: give one that contains runs.")
    missing = [name for name in ("dash", "dash_ag_grid") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError("The dashboard needs Dash and its grid: pip install dash dash-ag-grid")
    serve(root, arguments.host, arguments.port, prefix, arguments.edit)
    return EXIT_DONE


def serve(root: Path, host: str, port: int, prefix: str = "/", edit: bool = False) -> None:
    """Serve until a signal ends the process. Raises ConfigError if it cannot listen on the address."""
    from werkzeug.serving import make_server

    from ima_dist.dashboard import access
    from ima_dist.dashboard.app import make_app

    # A proxy's host name tells nothing, and others on this machine must not write.
    alone = access.is_loopback(host) and prefix == "/" and not edit
    token = None if alone else access.new_token()
    app = make_app(root, token, prefix, edit)
    # Otherwise werkzeug prints one line per request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"Cannot listen on {host}:{port} ({reason}): give another --port or --host.") from None
    with listening:
        port = listening.getsockname()[1]
        server = make_server(host, port, app.server, threaded=True, fd=listening.fileno())
        name = f"[{host}]" if ":" in host else host
        if token is not None and host in ("0.0.0.0", "::"):
            name = socket.gethostname()
        path = prefix + (f"?token={token}" if token else "")
        say(f"http://{name}:{port}{path}")
        if prefix != "/":
            say(f"Behind the proxy: its address, and then {path}")
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
