"""``python -m ima_dist.dashboard RESULTS_DIR``: show the runs of a directory in a browser."""

import importlib.util
import logging
import socket
import sys
from pathlib import Path

from ima_dist.cli.entry import existing, guarded, say
from ima_dist.cli.parser import OneLineParser
from ima_dist.config.errors import EXIT_DONE, ConfigError

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
    arguments = parser.parse_args(argv)
    root: Path = existing(arguments.results).absolute()
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory: give one that contains runs.")
    if importlib.util.find_spec("dash") is None:
        raise ConfigError("The dashboard needs Dash: pip install dash")
    serve(root, arguments.host, arguments.port)
    return EXIT_DONE


def serve(root: Path, host: str, port: int) -> None:
    """Serve until a signal ends the process. Raises ConfigError if it cannot listen on the address."""
    from werkzeug.serving import make_server

    from ima_dist.dashboard import access
    from ima_dist.dashboard.app import make_app

    token = None if access.is_loopback(host) else access.new_token()
    app = make_app(root, token)
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
        say(f"http://{name}:{port}/" + (f"?token={token}" if token else ""))
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
