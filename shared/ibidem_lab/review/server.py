"""The server of the review page, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput, MissingExtra
from ibidem_lab.review.app import Pages
from ibidem_lab.review.gate import HEADER_BYTES, Gate
from ibidem_lab.review.session import ReviewSession

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingExtra("the review page", "review") from error

if TYPE_CHECKING:
    from ibidem_lab.review.session import ReviewQueue

HOST = "127.0.0.1"
GRACE_SECONDS = 3  # for requests under way at the end
CONNECTION_SECONDS = 30.0  # for one request: to send it, to answer it, to read the answer
CONNECTIONS = 100  # held at a time


def serve(queue: ReviewQueue, port: int, on_start: Callable[[str], None], *, show: bool) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        queue: Finds the pairs to judge.
        port: 0 for any that is free.
        on_start: Called with the address, which holds the token.
        show: Whether to open the browser.

    Raises:
        InvalidInput: The port cannot be used.
        KeyboardInterrupt: At Ctrl-C, once all is closed.
    """
    with listening(port) as listener:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(32)
        gate = Gate(Pages(ReviewSession(queue)).app(), token, port)
        url = f"http://{HOST}:{port}/?token={token}"
        on_start(url)
        if show:  # in a thread, as a browser in the terminal returns when it is closed
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        server(gate).run(sockets=[listener])


def listening(port: int) -> socket.socket:
    """Return a socket that listens on 127.0.0.1; raises `InvalidInput`."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise InvalidInput(f"cannot listen on port {port}: {error}") from None
    return listener


class BoundedConnection(H11Protocol):
    """A connection for one request, which ends after `CONNECTION_SECONDS` whatever the client does.

    uvicorn has no limit for a slow request. Of more than `CONNECTIONS` the oldest ends: a browser gets in
    while others hold theirs open.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, and make room."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(CONNECTION_SECONDS, self._abort)
        if len(self.connections) > CONNECTIONS:
            ours = [one for one in self.connections if isinstance(one, BoundedConnection)]
            min(ours, key=lambda one: one._timer.when())._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _abort(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


def server(gate: Gate) -> uvicorn.Server:
    """Return a server that logs nothing: addresses hold the token, and anybody can cause a warning."""
    config = uvicorn.Config(
        gate,
        http=BoundedConnection,
        h11_max_incomplete_event_size=HEADER_BYTES,
        backlog=CONNECTIONS,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)
