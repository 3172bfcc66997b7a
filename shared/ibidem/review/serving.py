"""Serving the pages on this machine until Ctrl-C; the only import of uvicorn."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput, MissingExtra
from ibidem.review.app import Pages
from ibidem.review.desk import Desk
from ibidem.review.gate import Gate

try:
    import uvicorn
except ImportError as error:
    raise MissingExtra("the review page", "review") from error

if TYPE_CHECKING:
    from ibidem.review.queue import Sieve

HOST = "127.0.0.1"
WAITS = 3  # seconds for requests under way when it ends


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
        gate = Gate(Pages(sieve.records, Desk(sieve)).app(), token, port)
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


def server(gate: Gate) -> uvicorn.Server:
    """A server of this application, quiet: addresses hold the token."""
    config = uvicorn.Config(
        gate,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=WAITS,
    )
    return uvicorn.Server(config)
