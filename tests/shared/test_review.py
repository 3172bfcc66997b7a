"""The review: what is to be judged, what becomes of it, who may come in, the pages."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import ibidem_lab
from ibidem import Answer, Request
from ibidem.audits.auditor import report_of
from ibidem.cli.commands import app
from ibidem.errors import InvalidInput, StorageError
from ibidem.settings import read_settings
from ibidem.storage.reviews import ReviewPair
from ibidem.storage.store import Store
from ibidem_lab.fitting.labels import of_judgements
from ibidem_lab.labelling.gathering import gather
from ibidem_lab.review.app import Pages
from ibidem_lab.review.gate import Gate
from ibidem_lab.review.server import listening
from ibidem_lab.review.session import ReviewSession, review_queue
from ibidem_lab.review.showing import COMPARED, LONGEST, marked, pair_view, readable
from tests import reviewed
from tests.helpers import Child, question, reworded
from tests.servers import running_postgres
from tests.shared.test_audit import judged

PORT = 8765
HERE = f"http://127.0.0.1:{PORT}"
ORIGIN = {"origin": HERE}
PASSWORD = ("How do I reset my password?", "How do I change my password?")
SHOES = ("How long can I return shoes?", "How long can I return goods?")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL."""
    with running_postgres() as url:
        yield url


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A place with a few pairs of each kind."""
    with closing(Store(f"sqlite:///{tmp_path / 'ibidem.sqlite3'}")) as found:
        reviewed.fill(found)
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The same on both databases."""
    on_postgres = request.param == "postgresql"
    url = request.getfixturevalue("postgres") if on_postgres else f"sqlite:///{tmp_path / 'either.sqlite3'}"
    with closing(Store(url)) as found:
        found.clear()
        reviewed.fill(found)
        yield found


def session_of(store: Store, namespace: str | None = None) -> ReviewSession:
    """A session with the pairs of this place."""
    return ReviewSession(review_queue(store, read_settings(), namespace))


def pairs(store: Store) -> list[tuple[str, str]]:
    """All that is to be judged, in order."""
    return [(met.asked, met.stored) for met in review_queue(store, read_settings(), None).pairs()]


def met_of(store: Store, asked: str) -> ReviewPair:
    """The pair in which this was asked."""
    return next(met for met in review_queue(store, read_settings(), None).pairs() if met.asked == asked)


def browser(store: Store, gate: Gate | None = None) -> TestClient:
    """A browser that was given the token."""
    client = TestClient(gate or gate_of(store), base_url=HERE)
    assert client.get("/?token=secret").status_code == 200
    return client


def gate_of(store: Store) -> Gate:
    return Gate(Pages(session_of(store)).app(), "secret", PORT)


def pair_on(page: str) -> str:
    """The id of the pair that a page shows."""
    found = re.search(r'name="pair" value="(\w+)"', page)
    assert found is not None, page
    return found[1]


# What is to be judged


def test_audits_come_first_then_what_is_near_the_boundary(either: Store) -> None:
    """What guards and documents refused comes last; equal questions and gone answers never."""
    store = either
    gone = reviewed.entry("A question whose answer is gone?", "Gone.")
    same = reviewed.entry("The very same?", "Same.")
    store.entries.put(same, "embedder")
    store.lookups.add(
        [
            reviewed.looked_up("What is gone?", gone, 0.95, reason="below_threshold"),
            reviewed.looked_up("The very same? ", same, 1.0, reason="documents_changed"),
        ]
    )

    found = review_queue(store, read_settings(), None).pairs()

    assert [met.kind for met in found] == ["audit"] * 2 + [met.kind for met in found[2:]]
    assert (found[0].asked, found[0].stored) == PASSWORD
    last = {met.reason for met in found[-3:]}
    assert last == {"documents_changed", "guard:opposites", "guard:invisible"}
    scores = [abs((met.score or 0) - 0.955) for met in found[2:-3]]
    assert scores == sorted(scores)
    assert len(found) == 8
    assert {met.kind for met in found} == {"audit", "hit", "near_miss"}


def test_what_met_often_is_one_pair(store: Store) -> None:
    """With the outcome of the last time, and how often."""
    shop = next(one for one in store.entries.newest() if one.question == SHOES[1])
    store.lookups.add([reviewed.looked_up(SHOES[0], shop, 0.95, reason="audit") for _ in range(3)])

    met = met_of(store, SHOES[0])

    assert (met.kind, met.reason, met.count) == ("near_miss", "audit", 4)


def test_a_namespace_can_be_chosen(store: Store) -> None:
    """Its pairs only."""
    found = session_of(store, namespace="acme").queue.pairs()

    assert [met.asked for met in found] == ["Where is my invoice?"]


# What becomes of a judgement


def test_a_judgement_is_found_by_fit_pairs_and_reports(either: Store) -> None:
    """A label of its own, which corrects what the audit took the pair for; undo takes all of it back."""
    store = either
    met = met_of(store, PASSWORD[0])
    before = [(row.source, row.right) for row in store.judgements.recent()]

    said = store.reviews.judge(met, False, reviewed.AT)

    rows = store.judgements.recent()
    assert [(row.source, row.right) for row in rows if row.asked == met.asked] == [
        ("review", False),
        ("audit", False),
    ]
    assert PASSWORD not in pairs(store)
    labels = {(label.asked, label.stored): label.right for label, _ in of_judgements(reversed(rows))}
    assert labels[PASSWORD] is False
    told = {(pair.a, pair.b): pair for pair in gather(store, "embedder").met}
    assert (told[PASSWORD].same, told[PASSWORD].labelled_by, told[PASSWORD].source) == (
        False,
        "review",
        "review",
    )
    (audited,) = report_of(store, 0.02, 0.05)[-1:]
    assert (audited.audits, audited.wrong) == (1, 1)

    assert store.reviews.undo(said)
    assert [(row.source, row.right) for row in store.judgements.recent()] == before
    assert PASSWORD in pairs(store)
    assert not store.reviews.undo(said)


def test_a_near_miss_that_was_judged_is_no_sample_for_budgets(store: Store) -> None:
    """People choose what they judge: only what audits drew counts there."""
    met = met_of(store, "May I return goods?")
    before = store.judgements.newest(100, "", met.scorer)

    store.reviews.judge(met, True, reviewed.AT)

    assert store.judgements.newest(100, "", met.scorer) == before
    assert store.judgements.audits() == (1, 0)


def test_a_reviewer_has_the_last_word(store: Store) -> None:
    """Also over an audit that comes later."""
    met = met_of(store, PASSWORD[0])
    store.reviews.judge(met, False, reviewed.AT)
    entry = next(one for one in store.entries.newest() if one.question == PASSWORD[1])
    store.judgements.add([reviewed.audited(PASSWORD[0], entry, 0.957, True)])

    rows = store.judgements.recent()
    labels = {(label.asked, label.stored): label.right for label, _ in of_judgements(reversed(rows))}
    told = {(pair.a, pair.b): pair.same for pair in gather(store, "embedder").met}

    assert (labels[PASSWORD], told[PASSWORD]) == (False, False)
    assert PASSWORD not in pairs(store)


def test_a_running_cache_reads_its_budget_again(open_cache, tmp_path: Path) -> None:
    """Audits that the judge took for wrong keep a budget shut; a person corrects them, and it opens."""
    cache = open_cache(audit_rate=0.5, max_error_rate=0.02, min_similarity=None)
    cache.store(Request(question(1)), Answer("one"))
    stored = cache.recent(1)
    assert stored == []
    entry = cache._runtime.store.entries.newest(1)[0]
    rows = [
        judged(0.97, right=n % 20 > 0, asked=f"{n}", stored=question(1), entry_id=entry.id)
        for n in range(600)
    ]
    with closing(Store(f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}")) as elsewhere:
        elsewhere.judgements.add(rows)
        (told,) = cache.stats().audits
        assert told.threshold is None
        found = elsewhere.reviews.audited(0.97, 1_000)
        assert len(found) == 600
        for met in found:
            if not met.right:
                elsewhere.reviews.judge(met, True, 2.0)
        assert cache._runtime.judgement_log.flush()
        (told,) = cache.stats().audits

    assert told.threshold is not None
    assert told.threshold <= 0.97


def test_one_pair_is_judged_once_whoever_is_faster(either: Store) -> None:
    """Eight processes' worth of reviewers press at once: one judgement, the others are told what was said."""
    met = met_of(either, SHOES[0])
    barrier = threading.Barrier(8)

    def press(n: int) -> bool:
        barrier.wait(10)
        return either.reviews.judge(met, n % 2 == 0, float(n)).again

    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(press, range(8)))

    assert sorted(again) == [False] + [True] * 7
    assert len([row for row in either.judgements.recent() if row.source == "review"]) == 1


# The session


def test_what_another_session_judged_is_not_shown(store: Store) -> None:
    """And who has it on the screen already is told what was said."""
    here, there = session_of(store), session_of(store)
    mine = here.next()
    assert mine is not None
    assert mine == there.next()
    there.judge(mine[0].id, False)
    said = here.judge(mine[0].id, True)

    assert said is not None
    assert said.again
    assert here.take_notice()[0] == "That pair was judged elsewhere: not the same answer."
    assert here.judge(mine[0].id, True) is None
    assert "not waiting any more" in here.take_notice()[0]
    shown = session_of(store).next()
    assert shown is not None
    assert shown[0].id != mine[0].id


def test_skip_and_undo(store: Store) -> None:
    """What was skipped is not shown again; undo goes back one by one."""
    session = session_of(store)
    first = session.next()
    assert first is not None
    assert session.next() == first
    session.skip(first[0].id)
    second = session.next()
    assert second is not None
    assert second[0].id != first[0].id
    session.judge(second[0].id, True)

    session.undo()
    assert session.next() == second
    assert pairs(store)[1] == (second[0].asked, second[0].stored)
    session.undo()
    assert session.next() == first
    session.undo()
    assert session.take_notice()[0] == "There is nothing to undo."


# What is shown


def test_words_that_differ_are_marked() -> None:
    """Word by word, without the blanks around them."""
    here, there = marked("How do I reset my  password?", "How can I reset the password")

    assert [piece.text for piece in here if piece.differs] == ["do", "my", "?"]
    assert [piece.text for piece in there if piece.differs] == ["can", "the"]
    assert "".join(piece.text for piece in here) == "How do I reset my  password?"
    long = "word " * COMPARED
    assert marked(long, "word") == ([(long, False)], [("word", False)])


def test_texts_cannot_change_more_than_themselves() -> None:
    """Line breaks and joiners stay where they are written; what nobody sees is seen (`test_invisible.py`)."""
    assert readable("a\n\tb\u0645\u06cc\u200c\u062e") == "a\n\tb\u0645\u06cc\u200c\u062e"
    assert readable("a\u200fb\u200d\u200bc") == "a\ufffdb\ufffd\ufffdc"
    assert (
        readable("a\x00\x1b\u202eb\ud800")
        == "a" + "\N{REPLACEMENT CHARACTER}" * 3 + "b\N{REPLACEMENT CHARACTER}"
    )
    assert len(readable("x" * 10**6)) == LONGEST


def test_the_answer_of_the_model_and_changed_documents_are_shown(store: Store) -> None:
    """Where the question that missed was stored itself."""
    met = met_of(store, "How long may I return the goods I bought?")
    (entry,) = store.entries.of_ids([met.entry_id])

    shown = pair_view(store, met, entry)

    assert shown.fresh is not None
    assert shown.fresh.answer.text == "Within 14 days."
    assert [(one.id, one.state, one.supports) for one in shown.documents] == [("terms#4", "changed", True)]
    assert not shown.replaced
    assert pair_view(store, replace(met, at=met.at - 1_000), entry).replaced


# Who may come in


def test_without_the_token_there_is_nothing(store: Store) -> None:
    """Whatever the address; a wrong token, and a cookie that was not given, are none."""
    stranger = TestClient(gate_of(store), base_url=HERE)
    for address in (
        "/",
        "/static/review.js",
        "/nowhere",
        "/?token=wrong",
        "/?token=",
        "/?token=é",
    ):
        answer = stranger.get(address)
        assert answer.status_code == 403, address
        assert "password" not in answer.text
    stranger.cookies.set(f"ibidem_review_{PORT}", "guessed")
    assert stranger.get("/").status_code == 403
    assert stranger.post("/judge", headers=ORIGIN).status_code == 403


def test_the_token_is_exchanged_for_a_cookie(store: Store) -> None:
    """Which scripts cannot read and other sites do not send; a browser stays who it is."""
    client = TestClient(gate_of(store), base_url=HERE)
    first = client.get("/?token=secret").headers["set-cookie"]

    assert re.fullmatch(rf"ibidem_review_{PORT}=[\w-]{{43}}; HttpOnly; Path=/; SameSite=strict", first)
    assert "secret" not in first
    assert client.get("/?token=secret").headers["set-cookie"] == first
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [{}, {"origin": "null"}, {"origin": "https://evil.example"}, {"origin": "http://127.0.0.1:9999"}],
)
def test_a_post_from_another_page_is_refused(store: Store, origin: dict[str, str]) -> None:
    """Also from another port of this machine, for which browsers send our cookie along."""
    client = browser(store)
    form = {"pair": pair_on(client.get("/").text), "verdict": "yes"}

    assert client.post("/judge", data=form, headers=origin).status_code == 403
    assert not [row for row in store.judgements.recent() if row.source == "review"]
    assert client.post("/judge", data=form, headers=ORIGIN).status_code == 200


def test_another_name_of_this_machine_is_refused(store: Store) -> None:
    """A name of another site that resolves to 127.0.0.1 (DNS rebinding), or another port."""
    client = browser(store)
    for host in ("evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "[::1]:8765", ""):
        assert client.get("/?token=secret", headers={"host": host}).status_code == 403, host
    assert client.get("/?token=secret", headers={"host": f"localhost:{PORT}"}).status_code == 200


def test_every_answer_is_locked_down(store: Store) -> None:
    """Nothing inline runs, nothing is loaded from elsewhere, framed or kept; refusals and files included."""
    client = browser(store)
    for address in ("/", "/static/page.css", "/nowhere", "/?token=secret"):
        headers = client.get(address).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"


def test_only_our_own_files_are_served(store: Store) -> None:
    """No path leads out of the folder."""
    client = browser(store)

    assert "data-key" in client.get("/static/review.js").text
    for name in ("app.py", "..%2fapp.py", "%2e%2e/app.py", "judge.html"):
        assert client.get(f"/static/{name}").status_code == 404, name


# The pages


def test_judging_goes_from_pair_to_pair(store: Store) -> None:
    """By its buttons, until all is judged; then it says what to do."""
    client, count = browser(store), len(pairs(store))
    page = client.get("/").text
    for n in range(count):
        assert f"{count - n} pair" in page
        form = {"pair": pair_on(page), "verdict": "no" if n % 2 else "yes"}
        page = client.post("/judge", data=form, headers=ORIGIN).text

    assert "All is judged" in page
    assert f"{count} pairs judged by you" in page
    assert sum(row.source == "review" for row in store.judgements.recent(100)) == count
    assert "Undone." in client.post("/undo", headers=ORIGIN).text


def test_a_hit_that_was_wrong_can_be_deleted_at_once(store: Store) -> None:
    """The page offers it, and goes on."""
    client = browser(store)
    page = client.get("/").text
    while "this answer was <strong>served</strong>" not in page:
        page = client.post("/judge", data={"pair": pair_on(page), "verdict": "skip"}, headers=ORIGIN).text
    page = client.post("/judge", data={"pair": pair_on(page), "verdict": "no"}, headers=ORIGIN).text
    found = re.search(r'name="entry" value="(\w+)"', page)
    assert found is not None

    assert "The answer was deleted." in client.post("/delete", data={"entry": found[1]}, headers=ORIGIN).text
    assert client.post("/delete", data={"entry": found[1]}, headers=ORIGIN).status_code == 404
    assert SHOES[1] not in [entry.question for entry in store.entries.newest()]


def test_hostile_text_is_shown_as_text(store: Store) -> None:
    """On each page that shows it; each text has a direction of its own."""
    client = browser(store)
    texts = []
    page = client.get("/").text
    while 'name="pair"' in page:
        texts.append(page)
        page = client.post("/judge", data={"pair": pair_on(page), "verdict": "skip"}, headers=ORIGIN).text

    assert sum("&lt;script&gt;" in text for text in texts) == 1
    for text in texts:
        assert text.count("<script") == 1
        assert "<img" not in text
        assert "<svg" not in text
        assert "<b>" not in text
    assert '<p class="question" dir="auto">' in texts[0]
    assert any(f'<div class="answer" dir="auto">{reviewed.HEBREW}</div>' in text for text in texts)


def test_an_empty_place_says_what_to_do(tmp_path: Path) -> None:
    """And how pairs come about."""
    with closing(Store(f"sqlite:///{tmp_path / 'empty.sqlite3'}")) as store:
        assert "Nothing to judge yet" in browser(store).get("/").text


def test_an_unknown_address_is_said_on_a_page(store: Store) -> None:
    """No traceback, no blank page."""
    answer = browser(store).get("/no")

    assert (answer.status_code, "That did not work" in answer.text) == (404, True)


def test_a_form_that_is_too_long_or_wrong_is_refused(store: Store) -> None:
    """Before it is read whole."""
    client = browser(store)

    assert client.post("/judge", data={"pair": "x" * 20_000}, headers=ORIGIN).status_code == 413
    assert client.post("/judge", data={"pair": "x", "verdict": "maybe"}, headers=ORIGIN).status_code == 400
    assert client.get("/judge").status_code == 405


def test_a_database_that_fails_is_said_on_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the page works again when it does."""
    client = browser(store)

    def fails(*_: object) -> None:
        raise StorageError("the disk is <full>")

    monkeypatch.setattr(store.reviews, "verdict", fails)
    answer = client.get("/")
    assert (answer.status_code, "the disk is &lt;full&gt;" in answer.text) == (503, True)
    monkeypatch.undo()
    assert client.get("/").status_code == 200


# The command

SERVED = """
import sys
from ibidem.cli import main
sys.argv = ["ibidem", "review", "--no-open", "--path", sys.argv[1]]
main()
"""


def test_the_command_serves_until_it_is_interrupted(open_cache, tmp_path: Path) -> None:
    """Beside a cache in use, on 127.0.0.1, at the address that it prints; Ctrl-C is no failure."""
    cache = open_cache()
    cache.store(Request(question(1)), Answer("one"))
    assert cache.lookup(Request(reworded(1)))
    cache.flush()
    with Child(SERVED, tmp_path / "cache") as child:
        url = child.line().removeprefix("Review: ")
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)\?token=[\w-]{43}", url)
        assert found is not None, url
        with httpx.Client(base_url=found[1]) as client:
            assert client.get("/").status_code == 403
            assert client.get(url).status_code == 200
            assert reworded(1).split()[0] in client.get("/").text
        child.process.send_signal(signal.SIGINT)
        assert "Ctrl-C ends it" in child.line()
        assert child.line() == "Ended."
        assert child.end() == 0


def test_a_port_in_use_is_an_error() -> None:
    """One sentence, which names it."""
    with listening(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"cannot listen on port {port}"):
            listening(port)


def test_the_command_creates_no_cache(tmp_path: Path) -> None:
    """As the others that only look."""
    done = CliRunner().invoke(app, ["review", "--path", str(tmp_path / "none"), "--no-open"])

    assert done.exit_code == 2
    assert "there is no cache" in done.output
    assert not (tmp_path / "none").exists()


def test_the_extra_is_named_if_it_is_not_installed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the command to install it."""
    for module in ("gate", "app", "server"):
        monkeypatch.delitem(sys.modules, f"ibidem_lab.review.{module}")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    done = CliRunner().invoke(app, ["review", "--path", str(tmp_path), "--no-open"])

    assert done.exit_code == 2
    assert "pip install 'ibidem-cache[review]'" in done.output


def test_a_real_cache_has_pairs_to_judge(open_cache, tmp_path: Path) -> None:
    """While it is open: what it was asked is to be judged, and a bad answer is gone for it at once."""
    cache = open_cache()
    cache.store(Request(question(1)), Answer("one"))
    assert cache.lookup(Request(reworded(1)))
    cache.flush()
    with closing(Store(f"sqlite:///{tmp_path / 'cache' / 'ibidem.sqlite3'}")) as store:
        client = browser(store)
        page = client.get("/").text
        client.post("/judge", data={"pair": pair_on(page), "verdict": "no"}, headers=ORIGIN)
        (entry,) = store.entries.newest()
        client.post("/delete", data={"entry": entry.id}, headers=ORIGIN)

    assert not cache.lookup(Request(reworded(1)))
    (pair,) = [pair for pair in ibidem_lab.pairs(cache).pairs if pair.labelled_by == "review"]
    assert (pair.a, pair.b, pair.same) == (reworded(1), question(1), False)
