"""Access to the review page: only for browsers of this machine with the token, and our own forms."""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

from ibidem.errors import MissingExtra

try:
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse
except ImportError as error:
    raise MissingExtra("the review page", "review") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of a request with its address. Browsers send the cookies of all that is served on 127.0.0.1, at any port.
HEADER_BYTES = 32_768
HEADER_COUNT = 100
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: then browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Connection": "close",  # so that the server can bound the life of a connection
}
# The cookie is not sent along with a redirect that another site began, so the page itself goes on.
WELCOME = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ibidem</title>
<meta http-equiv="refresh" content="0;url=/"></head><body><p><a href="/">To the review</a></p></body></html>
"""


class Gate:
    """Check host, origin and cookie before an ASGI application, and set the headers of all answers.

    The token in the query of any address is exchanged for a cookie; a request without either is answered
    with 403.

    Args:
        app: The application behind the gate.
        token: The secret in the address that was printed.
        port: The port of the server on 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"ibidem_review_{port}"  # cookies do not tell ports apart
        self._session = secrets.token_urlsafe(32)  # the value of the cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return

        async def send_locked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app_for(scope)(scope, receive, send_locked)

    def _app_for(self, scope: Scope) -> ASGIApp:
        """Return the application if the request may reach it, else the answer."""
        request = Request(scope)
        host = request.headers.get("host", "")
        if _is_too_large(scope):
            return PlainTextResponse("That request has too many headers, or too long ones.", 431)
        if host not in self._hosts:  # another name for this machine: rebound by another site
            return PlainTextResponse(
                "This page is only served to 127.0.0.1 and localhost, at its own port.", 403
            )
        if request.method not in ("GET", "HEAD") and request.headers.get("origin") != f"http://{host}":
            return PlainTextResponse("That came from another page.", 403)
        if _is_same(request.query_params.get("token", ""), self._token):
            welcome = HTMLResponse(WELCOME)
            welcome.set_cookie(self._cookie, self._session, httponly=True, samesite="strict")
            return welcome
        if not _is_same(request.cookies.get(self._cookie, ""), self._session):
            return PlainTextResponse("Open the address that ibidem review has printed, with its token.", 403)
        return self._app


def _is_same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _is_too_large(scope: Scope) -> bool:
    """Return whether a request is larger than a browser's; h11 only bounds headers that come in pieces."""
    sizes = [len(name) + len(value) for name, value in scope["headers"]]
    address = len(scope["path"]) + len(scope["query_string"])
    return len(sizes) > HEADER_COUNT or sum(sizes) + address > HEADER_BYTES
