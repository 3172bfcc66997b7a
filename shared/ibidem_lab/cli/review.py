"""`ibidem review`: a local page on which people judge pairs that the cache was unsure of."""

from __future__ import annotations

from typing import Annotated

import typer

from ibidem.cli.output import (
    DatabaseOption,
    NamespaceOption,
    PathOption,
    err,
    existing_store,
    out,
    settings_of,
)
from ibidem.cli.panels import DAILY, in_panel


@in_panel(DAILY)
def review_pairs(
    path: PathOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="Where to listen on 127.0.0.1; 0: any free port.")
    ] = 0,
    open_it: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = True,
) -> None:
    """Serve a page to judge near misses, hits and audits; Ctrl-C ends it."""
    with existing_store(path, database) as store:
        from ibidem_lab.review.server import serve  # needs ibidem-cache[review]
        from ibidem_lab.review.session import review_queue

        with err.status("Reading the logs"):
            queue = review_queue(store, settings_of(path, database), namespace)
        try:
            serve(queue, port, _tell, show=open_it)
        except KeyboardInterrupt:
            out.print("Ended.")


def _tell(url: str) -> None:
    """By itself on a line: it is copied."""
    out.print(f"Review: {url}", soft_wrap=True, highlight=False, markup=False)
    out.print("Only this machine can open it, with that token. Ctrl-C ends it.")
