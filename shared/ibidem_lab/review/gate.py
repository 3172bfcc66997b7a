"""Who may come in: only this machine's browsers that were given the token, and only from our own pages."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Of a request with its address. Browsers send the cookies of all that is served on 127.0.0.1, at any port.
HEADER_BYTES = 32_768
HEADER_COUNT = 100
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: then browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The cookie is not sent along with a redirect that another site began, so the page itself goes on.
WELCOME = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Ibidem</title>
<meta http-equiv="refresh" content="0;url=/"></head><body><p><a href="/">To the review</a></p></body></html>
"""


class Gate:
    """An ASGI application before another: checks host, origin and cookie, sets the headers of all answers.

    The token in the query of any address is exchanged for a cookie; a request without it is answered with
    403.

    Args:
        app: What is behind.
        token: The secret in the address that was printed.
        port: Where it listens, on 127.0.0.1.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"ibidem_review_{port}"  # cookies do not tell ports apart
        self._session = secrets.token_urlsafe(32)  # the value of the cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in, or refuse."""
        if scope["type"] != "http":
            return
        if _is_too_large(scope):
            await _answer(send, 431, "That request has too many headers, or too long ones.")
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope["method"], headers):
            await _answer(send, 403, refusal)
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if given and hmac.compare_digest(given[0].encode("utf-8", "replace"), self._token):
            await self._welcome(send)
            return
        if not hmac.compare_digest(
            self._cookie_of(headers).encode("utf-8", "replace"), self._session.encode()
        ):
            await _answer(send, 403, "Open the address that ibidem review has printed, with its token.")
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, headers: dict[str, str]) -> str:
        """Why a request is refused whoever sends it; empty if it is not."""
        host = headers.get("host", "")
        if host not in self._hosts:  # another name for this machine: rebound by another site
            return "This page is only served to 127.0.0.1 and localhost, at its own port."
        if method not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return "That came from another page."
        return ""

    def _cookie_of(self, headers: dict[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return "" if found is None else found.value

    async def _welcome(self, send: Send) -> None:
        """Give a browser the cookie."""
        cookie = f"{self._cookie}={self._session}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 200, WELCOME, "text/html", ("set-cookie", cookie))


def _is_too_large(scope: Scope) -> bool:
    """Whether it is more than a browser sends; h11 only bounds headers that come in pieces."""
    sizes = [len(name) + len(value) for name, value in scope["headers"]]
    address = len(scope["path"]) + len(scope["query_string"])
    return len(sizes) > HEADER_COUNT or sum(sizes) + address > HEADER_BYTES


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            ours = {name.lower() for name in HEADERS}
            kept = [
                pair for pair in message.get("headers", ()) if pair[0].decode("latin-1").lower() not in ours
            ]
            message["headers"] = [*kept, *_raw(HEADERS.items())]
        await send(message)

    return sending


async def _answer(
    send: Send, status: int, text: str, kind: str = "text/plain", *more: tuple[str, str]
) -> None:
    body = text.encode()
    told = [("content-type", f"{kind}; charset=utf-8"), ("content-length", str(len(body))), *more]
    sending = _with_headers(send)
    await sending({"type": "http.response.start", "status": status, "headers": _raw(told)})
    await sending({"type": "http.response.body", "body": body})


def _raw(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
