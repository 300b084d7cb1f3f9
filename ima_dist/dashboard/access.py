"""Access control: only this machine, or whoever has the token.

On the loopback interface the host name in a request must be one of this machine's own. Otherwise a web page from
elsewhere could read the dashboard by a name of its own that resolves to 127.0.0.1. On any other interface a request
needs a token, first in the address and then in a cookie; so does one behind a proxy, whose name we do not know, or of
a page that can write.
"""

import hmac
import ipaddress
import secrets
from urllib.parse import urlencode

from flask import Flask, Response, abort, redirect, request

# Where browsers say that a request comes from; older ones say nothing.
_OURS = ("same-origin", "none")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """True if only this machine reaches a server bound to ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    return secrets.token_urlsafe(24)


def guard(server: Flask, token: str | None) -> None:
    """Refuse requests without ``token``, or from another machine if it is None."""

    @server.before_request
    def check() -> Response | None:
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site", "same-origin") not in _OURS:
            abort(403, "This request comes from a page of somebody else.")
        if token is None:
            name = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
            if name.strip("[]") not in _LOCAL_NAMES:
                abort(403, "The host name in this request is not one of this machine's own.")
            return None
        cookie = f"ima-dist-{request.environ.get('SERVER_PORT', '')}"
        if _same(request.cookies.get(cookie, ""), token):
            return None
        if not _same(request.args.get("token", ""), token):
            abort(403, "The token is missing or wrong: use the whole address that the dashboard printed.")
        rest = [(k, v) for k, v in request.args.items(multi=True) if k != "token"]
        # Without the token, so that it does not stay in the history and in links.
        answer = redirect(request.script_root + request.path + (f"?{urlencode(rest)}" if rest else ""))
        answer.set_cookie(cookie, token, httponly=True, samesite="Strict", path=f"{request.script_root}/")
        return answer  # type: ignore[return-value]

    @server.after_request
    def harden(answer: Response) -> Response:
        # Nothing is loaded from elsewhere; scripts and styles of Dash and Plotly are partly inline.
        answer.headers["Content-Security-Policy"] = (
            "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'"
        )
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
