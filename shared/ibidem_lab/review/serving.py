"""Serving the pages on this machine until Ctrl-C; the only import of uvicorn."""

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
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise MissingExtra("the review page", "review") from error

if TYPE_CHECKING:
    from ibidem_lab.review.queue import Sieve

HOST = "127.0.0.1"
WAITS = 3  # seconds for requests under way when it ends
PATIENCE = 10.0  # seconds in which a request must be here whole, and in which a client must read on
CONNECTIONS = 100  # held at a time


def serve(sieve: Sieve, port: int, tell: Callable[[str], None], *, show: bool) -> None:
    """Serve on 127.0.0.1 until Ctrl-C or SIGTERM.

    Args:
        sieve: Finds what is to be judged, and says where.
        port: 0 for any that is free.
        tell: Told the address with the token once it is served.
        show: Whether the browser is opened.

    Raises:
        InvalidInput: The port cannot be used.
        KeyboardInterrupt: At Ctrl-C, once all is closed.
    """
    with listening(port) as listener:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(32)
        gate = Gate(Pages(sieve.store, ReviewSession(sieve)).app(), token, port)
        url = f"http://{HOST}:{port}/?token={token}"
        tell(url)
        if show:  # in a thread, as a browser in the terminal returns when it is closed
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        server(gate).run(sockets=[listener])


def listening(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; raises `InvalidInput`."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise InvalidInput(f"cannot listen on port {port}: {error}") from None
    return listener


class Impatient(H11Protocol):
    """HTTP to clients that must not keep the server waiting; uvicorn has no limit for a slow request.

    A connection ends `PATIENCE` seconds after it began, or after its last answer, if no whole request came
    since, and if an answer is not read for as long. Of more than `CONNECTIONS` that one ends whose time is
    over first: a browser gets in while others hold theirs open.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came: it has to ask."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > CONNECTIONS:
            timers = {one: one._timer for one in self.connections if isinstance(one, Impatient)}
            ends = {one: timer.when() for one, timer in timers.items() if timer}
            min(ends, key=ends.__getitem__)._give_up()

    def data_received(self, data: bytes) -> None:
        """A part of a request came."""
        super().data_received(data)
        self._unless_waiting()

    def on_response_complete(self) -> None:
        """It has to read the answer, and may ask again."""
        self._wait()
        super().on_response_complete()
        self._unless_waiting()

    def pause_writing(self) -> None:
        """It does not read."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._unless_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or was given up."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(PATIENCE, self._give_up)

    def _unless_waiting(self) -> None:
        """Stop the clock if the whole request is here, and the answer is being read."""
        asks = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if not (asks or self.flow.write_paused or self.transport.is_closing()):
            self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._stop()
        self.connections.discard(self)
        self.transport.abort()


def server(gate: Gate) -> uvicorn.Server:
    """A server of this application, quiet: addresses hold the token, and anybody can cause a warning."""
    config = uvicorn.Config(
        gate,
        http=Impatient,
        h11_max_incomplete_event_size=HEADER_BYTES,
        backlog=CONNECTIONS,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=WAITS,
    )
    return uvicorn.Server(config)
