"""The review page and the actions of its buttons."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ibidem.errors import MissingExtra, StorageError
from ibidem.lifecycle.invalidation import Criteria
from ibidem_lab.review.showing import pair_view, readable
from ibidem_lab.review.vetted import VettedAnswers

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
    from starlette.routing import Route

    from ibidem_lab.html import environment
except ImportError as error:
    raise MissingExtra("the review page", "review") from error

if TYPE_CHECKING:
    from ibidem_lab.review.session import ReviewSession

_HERE = Path(__file__).parent
_STATIC = {
    "page.css": _HERE.parent / "report" / "page.css",
    "review.css": _HERE / "review.css",
    "review.js": _HERE / "review.js",
}
FORM_BYTES, ANSWER_BYTES = 10_000, 1_000_000  # of a form, and of one with an answer


class Pages:
    """The page of a session.

    Args:
        session: Holds the pairs and the database.
    """

    def __init__(self, session: ReviewSession) -> None:
        self._session, self._store = session, session.queue.store
        self._vetted = VettedAnswers(session.queue.store, session.queue.namespace, session.queue.bounds)
        self._templates = environment(_HERE)
        self._templates.filters["readable"] = readable

    def app(self) -> Starlette:
        """Return the application; it lets everybody in: see `gate.Gate`."""
        routes = [
            Route("/", self._next),
            Route("/judge", self._form(self._judge), methods=["POST"]),
            Route("/undo", self._form(self._undo), methods=["POST"]),
            Route("/delete", self._form(self._delete), methods=["POST"]),
            Route("/correct", self._form(self._correct, ANSWER_BYTES), methods=["POST"]),
            Route("/vetted", self._vetted_page),
            Route("/keep", self._form(self._keep, ANSWER_BYTES, "/vetted"), methods=["POST"]),
            Route("/drop", self._form(self._drop, then="/vetted"), methods=["POST"]),
            Route("/static/{name}", _static),
        ]
        handlers: dict[Any, Any] = {StorageError: self._failed, HTTPException: self._refused}
        return Starlette(routes=routes, exception_handlers=handlers)

    def _next(self, request: Request) -> Response:
        """Show the next pair."""
        session = self._session
        found = session.next()
        notice, doubted = session.take_notice()
        return self._page(
            "judge.html",
            pair=None if found is None else pair_view(self._store, *found),
            waiting=session.waiting(),
            notice=notice,
            doubted=doubted if doubted and self._store.entries.of_ids([doubted]) else "",
            done=sum(review is not None for _, review in session.done),
            undoable=bool(session.done),
            skipped=len(session.skipped),
            boundary=session.queue.boundary,
            withdrawn=len(self._vetted.waiting()),
        )

    def _vetted_page(self, request: Request) -> Response:
        """Show the vetted answers that are not served any more."""
        notice, _ = self._session.take_notice()
        return self._page("vetted.html", waiting=self._vetted.waiting(), notice=notice)

    def _judge(self, form: dict[str, str]) -> None:
        pair, verdict = form.get("pair", ""), form.get("verdict", "")
        if verdict == "skip":
            self._session.skip(pair)
        elif verdict in ("yes", "no"):
            self._session.judge(pair, verdict == "yes")
        else:
            raise HTTPException(400, "A verdict is yes, no or skip.")

    def _undo(self, form: dict[str, str]) -> None:
        self._session.undo()

    def _delete(self, form: dict[str, str]) -> None:
        """Delete an answer that is wrong for its own question as well; its examples stay, as bad ones."""
        found = self._store.entries.of_ids([form.get("entry", "")])
        if not found:
            raise HTTPException(404, "There is no such entry; it may have been deleted.")
        self._store.invalidations.invalidate(Criteria(entry=found[0].id), time.time, examples=False)
        self._session.notice = "The answer was deleted."

    def _correct(self, form: dict[str, str]) -> None:
        """Put the reviewer's answer in the place of the stored one."""
        self._session.notice = self._vetted.correct(form.get("entry", ""), _text(form))

    def _keep(self, form: dict[str, str]) -> None:
        self._session.notice = self._vetted.keep(form.get("entry", ""), _text(form))

    def _drop(self, form: dict[str, str]) -> None:
        self._session.notice = self._vetted.drop(form.get("entry", ""))

    def _form(
        self, action: Callable[[dict[str, str]], None], most: int = FORM_BYTES, then: str = "/"
    ) -> Callable[[Request], Any]:
        """Return an endpoint for a form of at most so many bytes; the page `then` follows."""

        async def endpoint(request: Request) -> Response:
            body = b""
            try:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise HTTPException(413, "That form is too long.")
            except ClientDisconnect:  # or it was too slow: nobody gets the answer
                raise HTTPException(400, "The form is incomplete.") from None
            fields = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
            await run_in_threadpool(action, fields)
            return RedirectResponse(then, 303)

        return endpoint

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(place=self._store.url, **values)
        return HTMLResponse(text, status)

    async def _failed(self, request: Request, error: Exception) -> Response:
        return self._page("problem.html", 503, text=f"The database failed: {error}")

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        return self._page("problem.html", error.status_code, text=error.detail)


def _text(form: dict[str, str]) -> str:
    """Return the answer in a form, with the line ends that it had before the browser sent it."""
    return form.get("answer", "").replace("\r\n", "\n")


async def _static(request: Request) -> Response:
    file = _STATIC.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(file)
