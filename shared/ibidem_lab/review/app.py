"""The pages of a review and what their buttons do; the only import of starlette."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from ibidem.correction import delete_matching, record_feedback
from ibidem.errors import MissingExtra, StorageError
from ibidem.lifecycle.invalidation import Criteria
from ibidem.types import storable
from ibidem_lab.review.queue import KINDS
from ibidem_lab.review.session import ReviewSession
from ibidem_lab.review.showing import readable, show

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
    from ibidem.storage.store import Store
    from ibidem.types import Entry

_HERE = Path(__file__).parent
_STATIC = {
    "page.css": _HERE.parent / "report" / "page.css",
    "review.css": _HERE / "review.css",
    "review.js": _HERE / "review.js",
}
PAGE = 50  # entries of a page
NAMESPACES = 200  # to choose from
MATCHED, JUDGED = 50, 20  # shown of an entry
FORM_BYTES = 10_000
ROOT = "/"


class Pages:
    """The pages on one place.

    Args:
        store: The database of the location.
        session: Holds what is to be judged.
    """

    def __init__(self, store: Store, session: ReviewSession) -> None:
        self._store, self._session = store, session
        self._templates = environment(_HERE)
        self._templates.filters["readable"] = readable

    def app(self) -> Starlette:
        """The application; it lets everybody in: see `gate.Gate`."""
        routes = [
            Route("/", _in_thread(self.judging)),
            Route("/judge", _form(self.judge), methods=["POST"]),
            Route("/undo", _form(self.undo), methods=["POST"]),
            Route("/entries", _in_thread(self.entries)),
            Route("/entries/{id}", _in_thread(self.entry)),
            Route("/entries/{id}", _form(self.change), methods=["POST"]),
            Route("/static/{name}", _static),
        ]
        handlers: dict[Any, Any] = {StorageError: self._failed, HTTPException: self._refused}
        return Starlette(routes=routes, exception_handlers=handlers)

    def judging(self, request: Request) -> Response:
        """The next pair."""
        kind = request.query_params.get("kind", "")
        session = self._session
        found = session.next(kind if kind in KINDS else "")
        notice, doubted = session.take_notice()
        return self._page(
            "judge.html",
            pair=None if found is None else show(self._store, *found),
            kind=kind if kind in KINDS else "",
            waiting=session.waiting(),
            notice=notice,
            doubted=doubted if doubted and self._store.entries.of_ids([doubted]) else "",
            done=sum(said is not None for _, said in session.done),
            undoable=bool(session.done),
            skipped=len(session.skipped),
            boundary=session.sieve.boundary,
        )

    def judge(self, request: Request, form: dict[str, str]) -> Response:
        """Note a judgement, and go on with the next pair."""
        pair, verdict = form.get("pair", ""), form.get("verdict", "")
        if verdict == "skip":
            self._session.skip(pair)
        elif verdict in ("yes", "no"):
            self._session.judge(pair, verdict == "yes")
        else:
            raise HTTPException(400, "A verdict is yes, no or skip.")
        return _back_to_judging(form)

    def undo(self, request: Request, form: dict[str, str]) -> Response:
        """Take the last judgement back."""
        self._session.undo()
        return _back_to_judging({})

    def entries(self, request: Request) -> Response:
        """Entries, newest first, a page at a time."""
        asked = request.query_params
        text, within = asked.get("q", "").strip(), asked.get("in", "")
        namespace = within[1:] if within else None
        if not (storable(text) and storable(within)):
            raise HTTPException(400, "That text is in no database.")
        browsing, before = self._store.browser, _before(asked.get("before"))
        found = browsing.page(PAGE + 1, before=before, namespace=namespace, text=text)
        rows, wanted = found[:PAGE], {name: value for name, value in (("q", text), ("in", within)) if value}
        last = f"{rows[-1].created!r},{rows[-1].id}" if len(found) > PAGE else ""
        notice, _ = self._session.take_notice()
        return self._page(
            "entries.html",
            rows=rows,
            older=urlencode({**wanted, "before": last}) if last else "",
            newest=urlencode(wanted),
            asked=text,
            namespace=namespace,
            namespaces=browsing.namespaces(NAMESPACES),
            begun=before is not None,
            total=browsing.count(),
            notice=notice,
        )

    def entry(self, request: Request) -> Response:
        """All about one entry."""
        found = self._entry(request)
        browsing = self._store.browser
        notice, _ = self._session.take_notice()
        return self._page(
            "entry.html",
            entry=found,
            tags=browsing.tags(found.id),
            matched=browsing.matched(found.id, MATCHED),
            judged=browsing.judged(found.id, JUDGED),
            now=time.time(),
            notice=notice,
        )

    def change(self, request: Request, form: dict[str, str]) -> Response:
        """Feedback on an entry, or its end; with its examples, unless the page of judging asks for it."""
        found, action = self._entry(request), form.get("action", "")
        if action in ("good", "bad"):
            record_feedback(self._store, found, action == "good")
            self._session.notice = "Noted." if action == "good" else "Noted as wrong; the answer was deleted."
        elif action == "delete":
            examples = form.get("examples") != "keep"
            delete_matching(self._store, Criteria(entry=found.id), time.time, examples=examples)
            self._session.notice = "The answer was deleted."
        else:
            raise HTTPException(400, "An entry can be called good or bad, or be deleted.")
        if form.get("back") == "judging":
            return _back_to_judging(form)
        return RedirectResponse(f"/entries/{found.id}" if action == "good" else "/entries", 303)

    def _entry(self, request: Request) -> Entry:
        found = self._store.entries.of_ids([request.path_params["id"]])
        if not found:
            raise HTTPException(404, "There is no such entry; it may have been deleted.")
        return found[0]

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self._templates.get_template(template).render(place=self._store.url, **values)
        return HTMLResponse(text, status)

    async def _failed(self, request: Request, error: Exception) -> Response:
        return self._page("problem.html", 503, text=f"The database failed: {error}")

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        return self._page("problem.html", error.status_code, text=error.detail)


def _in_thread(page: Callable[[Request], Response]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(page, request)

    return endpoint


def _form(action: Callable[[Request, dict[str, str]], Response]) -> Callable[[Request], Any]:
    """An endpoint for a form of short fields."""

    async def endpoint(request: Request) -> Response:
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > FORM_BYTES:
                    raise HTTPException(413, "That form is too long.")
        except ClientDisconnect:  # or it was too slow: nobody gets the answer
            raise HTTPException(400, "The form is incomplete.") from None
        fields = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        return await run_in_threadpool(action, request, fields)

    return endpoint


async def _static(request: Request) -> Response:
    file = _STATIC.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(file)


def _back_to_judging(form: dict[str, str]) -> Response:
    kind = form.get("kind", "")
    return RedirectResponse(f"{ROOT}?kind={kind}" if kind in KINDS else ROOT, 303)


def _before(given: str | None) -> tuple[float, str] | None:
    """The time and id of the last entry of the page before."""
    if given is None:
        return None
    at, _, id_ = given.partition(",")
    try:
        return float(at), id_ if storable(id_) else ""
    except ValueError:
        raise HTTPException(400, "That address is incomplete.") from None
