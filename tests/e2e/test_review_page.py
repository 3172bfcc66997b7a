"""The review in a real browser: keys, hostile texts, light and dark."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ibidem.settings import read_settings
from ibidem.storage.store import Store
from ibidem_lab.review.app import Pages
from ibidem_lab.review.gate import Gate
from ibidem_lab.review.server import listening, server
from ibidem_lab.review.session import ReviewSession, review_queue
from tests import reviewed

pytestmark = pytest.mark.slow
# Boxes that hold text and are seen: none may leave the window, and buttons must not lie on one another.
BOXES = """selector => [...document.querySelectorAll(selector)]
  .filter(one => one.getClientRects().length)
  .map(one => one.getBoundingClientRect())
  .map(({left, right, top, bottom}) => [left, right, top, bottom])"""


@dataclass
class Place:
    """A review that is served."""

    store: Store
    url: str
    token: str = "secret"

    @property
    def entrance(self) -> str:
        """The address with the token."""
        return f"{self.url}?token={self.token}"

    def said(self) -> list[tuple[str, bool]]:
        """What reviewers said, the oldest first."""
        rows = self.store.judgements.recent(1_000)
        return [(row.asked, row.right) for row in reversed(rows) if row.source == "review"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A review of a few pairs of each kind, served by uvicorn as the command does."""
    listener = listening(0)
    port = listener.getsockname()[1]
    with closing(Store(f"sqlite:///{tmp_path / 'ibidem.sqlite3'}")) as store:
        reviewed.fill(store)
        session = ReviewSession(review_queue(store, read_settings(), None))
        serving = server(Gate(Pages(session).app(), "secret", port))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Place(store, f"http://127.0.0.1:{port}/")
        serving.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


class Tab:
    """A browser of its own; what it says on the console, and dialogs, are kept."""

    def __init__(self, browser: Any, place: Place, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.goto(place.entrance)
        self.page.wait_for_url(place.url)

    def press(self, key: str) -> None:
        """Press a key and wait for the page that follows."""
        with self.page.expect_navigation():
            self.page.keyboard.press(key)

    def pair(self) -> str:
        """The id of the pair that is shown; empty if none is."""
        found = self.page.locator("input[name=pair]")
        return str(found.get_attribute("value")) if found.count() else ""

    def asked(self) -> str:
        """The question asked that is shown."""
        return str(self.page.locator(".sides .question").first.text_content())

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_the_keyboard_judges(browser: Any, place: Place) -> None:
    """y, n, s and u, also on a keyboard that writes no Latin letters; the token is not in the address."""
    with Tab(browser, place) as tab:
        assert tab.page.url == place.url
        first = tab.asked()
        tab.press("y")
        second = tab.asked()
        tab.press("n")
        tab.press("s")
        assert place.said() == [(first, True), (second, False)]

        tab.press("u")
        tab.press("u")
        assert tab.asked() == second
        assert place.said() == [(first, True)]
        cyrillic = (
            "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'т', code: 'KeyN', bubbles: true}))"
        )
        with tab.page.expect_navigation():
            tab.page.evaluate(cyrillic)
        assert place.said() == [(first, True), (second, False)]
        assert tab.said == []


def test_a_key_held_down_judges_nothing(browser: Any, place: Place) -> None:
    """And a page is answered once, however fast one presses."""
    with Tab(browser, place) as tab:
        held = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'y', code: 'KeyY', repeat: true}))"
        tab.page.evaluate(held)
        with tab.page.expect_navigation():
            tab.page.evaluate("for (const n of [1, 2, 3]) document.querySelector('[data-key=y]').click()")
        assert len(place.said()) == 1


def test_a_wrong_hit_is_deleted_with_d(browser: Any, place: Place) -> None:
    """Offered after n, gone after d, and the next pair is there."""
    with Tab(browser, place) as tab:
        while "was served" not in str(tab.page.locator(".facts").text_content()):
            tab.press("s")
        entry = str(tab.page.locator("[data-entry]").last.get_attribute("data-entry"))
        tab.press("n")
        tab.press("d")

        assert "The answer was deleted." in str(tab.page.locator(".notice").text_content())
        assert place.store.entries.of_ids([entry]) == []


def test_another_site_cannot_judge(browser: Any, place: Place) -> None:
    """A form of a page at another port of this machine gets 403, though the cookie comes along."""
    with Tab(browser, place) as tab:
        pair = tab.pair()
        form = (
            f'<form method="post" action="{place.url}judge"><input name="pair" value="{pair}">'
            '<button name="verdict" value="yes">Win</button></form>'
        )
        elsewhere = "http://127.0.0.1:8/"
        tab.page.route(f"{elsewhere}**", lambda route: route.fulfill(body=form, content_type="text/html"))
        tab.page.goto(elsewhere)
        with tab.page.expect_response(lambda answer: answer.url.endswith("/judge")) as got:
            tab.page.locator("button").click()

        assert "ibidem_review_" in got.value.request.all_headers()["cookie"]
        assert got.value.status == 403
        assert place.said() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_are_sound(browser: Any, place: Place, scheme: str, width: int) -> None:
    """Each pair: no script of a text runs, nothing overflows, buttons are apart."""
    with Tab(browser, place, width, scheme) as tab:
        shown = 0
        while tab.pair():
            sound(tab, width, scheme)
            shown += 1
            tab.press("s")
        sound(tab, width, scheme)
        assert shown == 8
        assert tab.said == []


def sound(tab: Tab, width: int, scheme: str) -> None:
    """The page that is shown now."""
    page = tab.page
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = {"light": "rgb(252, 252, 251)", "dark": "rgb(20, 22, 26)"}[scheme]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
    boxes = page.evaluate(BOXES, "button, nav a, input:not([type=hidden]), select")
    assert boxes
    assert [box for box in boxes if box[0] < 0 or box[1] > width] == []
    for at, one in enumerate(boxes):
        for other in boxes[:at]:
            apart = (one[0] >= other[1], other[0] >= one[1], one[2] >= other[3], other[2] >= one[3])
            assert any(apart), (page.url, one, other)


def test_a_text_from_right_to_left_stays_within_itself(browser: Any, place: Place) -> None:
    """Its direction is its own; the words around it keep theirs."""
    with Tab(browser, place) as tab:
        while tab.pair() and "هل" not in tab.asked():
            tab.press("s")
        directions = "all => all.map(one => getComputedStyle(one).direction)"
        assert tab.page.eval_on_selector_all(".sides .question", directions) == ["rtl", "rtl"]
        assert tab.page.eval_on_selector_all(".sides h2, .facts", directions) == ["ltr"] * 3


def test_a_reload_or_a_step_back_judges_nothing(browser: Any, place: Place) -> None:
    """Only buttons and keys do."""
    with Tab(browser, place) as tab:
        tab.press("y")
        tab.page.reload()
        tab.page.go_back()

        assert len(place.said()) == 1
