"""What the commands show of hostile text: all of it, obeyed nowhere, in any encoding."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ibidem
import ibidem_lab.cli
from ibidem import Answer, Document, Example, Request
from ibidem.cli import main, output
from ibidem.cli.doctor import Finding
from ibidem.cli.output import Console, json_text, plain
from ibidem.types import normalise
from tests.embedders import BagOfWords
from tests.helpers import ROOT

# Nothing of it may reach a terminal: controls (but for line breaks), separators of lines, marks of direction.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
PIECES = [
    "[red]", "[/]", "[/x]", "\\[/x]", "\\\\[bold]", "\\", "[link=https://evil.example]here[/link]", "[[",
    "]", "\\[link=https://evil.example/x]the manual\\[/link]", "[@click=app.bell]x[/]", "[not closed",
    ":bomb:", ":warning:", "\x1b[31m", "\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "\x1b]0;title\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1bP+q544e\x1b\\", "\x1b[2J", "\x9b31m",
    "\x9d0;t\x9c", "\x90q\x9c", "\x07", "\x08\x08\x08", "\r", "\r\n", "\n", "\x0b", "\x0c", "\x85",
    "\u2028", "\u2029", "\x7f", "\x1f", "\u202e", "\u2066x\u2069", "\u200f", "\u061c", "\u200b", "\ufeff",
    "\xad", "\u2060", "\U000e0041\U000e007f", "a\u0301\u0323\u0489", "\u0301", "Z\u0351\u0489" * 9,
    "\u6771\u4eac", "\U0001f44d", "\U0001f469\u200d\U0001f4bb", "\u200d",
    "\u06a9\u0647\u200c\u0647\u0627", "\u05ea\u05d5\u05da", "\xa0", "\u202f", "\u0427\u0442\u043e",
    "\xe9\xdf\u20ac", "\ue000", "\U0010ffff", "%s {0} {x!r}", "\t", "'\"`$(id)",
]  # fmt: skip


def hostile(draw: random.Random, name: str) -> str:
    """A text with a few of the pieces, and a word by which it is known."""
    return f"{name} " + "".join(f"{piece}{draw.choice(['', ' '])}" for piece in draw.choices(PIECES, k=6))


@st.composite
def texts(draw: Callable[[Any], Any]) -> str:
    """Pieces with any characters between, halves of some too."""
    pieces = st.lists(
        st.one_of(st.sampled_from(PIECES), st.text(max_size=5), st.sampled_from("\ud83d\udc4d\0"))
    )
    return "".join(draw(pieces))


# the mechanism ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(texts())
def test_plain_text_is_harmless_and_says_all(text: str) -> None:
    """All that is visible stays, in its order; twice is once."""
    shown = plain(text)

    assert not OBEYED.search(shown.replace("\t", " "))
    shown.encode("utf-8")
    assert plain(shown) == shown
    visible = [c for c in text if c.isprintable()]
    rest = iter(shown)
    assert all(c in rest for c in visible)


@settings(max_examples=60)
@given(texts(), st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252", "cp437", "shift_jis", "utf-16"]))
@example("\t[red]", "ascii")  # rich took it for less wide, and cut it off with a character that ASCII lacks
def test_a_console_prints_what_it_is_given(text: str, encoding: str) -> None:
    """As text, in a cell, a title and a column's name; the columns of a table stay aligned."""
    from rich.table import Table

    # As the streams of commands (`accept_any_encoding`): rich cuts what is too long with a sign of its own.
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", newline="\n")
    written = Console(file=stream, width=400, highlight=False)
    written.print(text, soft_wrap=True)
    table = Table(text, "x", title=text)
    table.add_row(text, "[red]y[/red]")
    written.print(table)
    stream.flush()
    found = stream.buffer.getvalue().decode(encoding)

    assert not OBEYED.search(found)
    shown = plain(text).encode(encoding, "backslashreplace").decode(encoding).expandtabs()
    assert found.startswith(shown.split("\n")[0].rstrip()) or "\t" in text
    assert "[red]y[/red]" in found


@settings(max_examples=60)
@given(texts(), st.sampled_from(["utf-8", "ascii", "cp1252"]))
def test_json_round_trips(text: str, encoding: str) -> None:
    """Also half characters; nothing in it is a control, and the encoding has all of it."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves are one
    written = json_text({text: [text, 1, None]}, encoding)

    assert json.loads(written) == {text: [text, 1, None]}
    assert not OBEYED.search(written)
    assert written.encode(encoding)


def test_joiners_of_scripts_and_emoji_are_no_controls() -> None:
    """Others are shown, as are tags; spaces of other widths are spaces."""
    for text in ("\u06a9\u0647\u200c\u0647\u0627", "\U0001f469\u200d\U0001f4bb", "Prix\u202f: 5\xa0\u20ac"):
        assert plain(text) == text
    assert plain("pass\u200dword \u200c\u200d x\U000e0041") == "pass\\u200dword \\u200c\\u200d x\\U000e0041"
    assert plain("a\r\nb\rc\x1b[0m") == "a\nb\\rc\\x1b[0m"


def test_all_commands_print_through_the_console() -> None:
    """No other console, no markup, nothing printed past it: what is written tomorrow is harmless too."""
    folders = [Path(one.__file__).parent for one in (output, ibidem_lab.cli)]
    for path in [path for folder in folders for path in folder.glob("*.py")]:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\[/?(red|green|yellow|bold|dim)\]|\[/\]", source), f"markup in {path}"
        assert not re.search(r"(?<![\w.])print\(", source), f"a bare print in {path}"
        assert (
            "rich.console" not in source.replace("rich.console import RenderableType", "")
            or path.name == "output.py"
        ), f"another console in {path}"
        assert not re.search(r"typer\.(confirm|prompt|secho)\(", source) or path.name == "output.py", path


# every command ------------------------------------------------------------------------------------------


def named(text: str) -> str:
    """The text as a name of a file; Windows takes no controls in one."""
    return re.sub(r"[\x00-\x1f:]", "", text) if sys.platform == "win32" else text


class Place:
    """A cache full of hostile texts, and files with them."""

    def __init__(self, folder: Path) -> None:
        draw = random.Random(17)
        self.path = folder / named("cache [red]\x1b[31m \u202e :bomb: [b] \u0427")
        self.tag, self.namespace = "tag" + "\x1b[31m[/x]\u202e", hostile(draw, "tenant").strip()
        self.questions = [normalise(hostile(draw, f"question{n}")) for n in range(40)]
        self.embedder = BagOfWords()
        with ibidem.open(self.path, embedder=self.embedder, min_similarity=0.8) as cache:
            for n, text in enumerate(self.questions):
                where = self.namespace if n % 2 else ""
                documents = [Document(hostile(draw, "doc"), "text", source=hostile(draw, "source"))] * (
                    n % 3 == 0
                )
                request = Request(text, namespace=where, documents=documents)
                cache.lookup(request)
                answer = Answer(hostile(draw, "answer"), model=hostile(draw, "model"), input_tokens=9)
                stored = cache.store(request, answer, tags=[self.tag])
                assert stored
                self.entry = stored.entry_id
                cache.lookup(Request(f"please {text}", namespace=where))
                cache.examples.add(Example(text, "answer", namespace=where, model=hostile(draw, "model")))
            cache.flush()
        pairs = [{"a": hostile(draw, "a"), "b": hostile(draw, "b"), "same": n % 2} for n in range(30)]
        self.pairs = self._write(folder / named("pairs [b]\x1b[31m.jsonl"), pairs)
        rows = [{"text": hostile(draw, "text"), "meaning": hostile(draw, "m")} for _ in range(20)]
        self.workload = self._write(folder / "load [b]\u202e.jsonl", rows)
        self.out = folder / named("out [b]\x1b]0;x\x07")

    @staticmethod
    def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    def quick(self) -> Iterator[tuple[list[object], int]]:
        """Commands, and the codes with which they end."""
        for as_json in ([], ["--json"]):
            for name in ("ls", "log", "examples"):
                yield [name, "--limit", 100, *as_json], 0
            for name in ("audit", "stats"):
                yield [name, *as_json], 0
            yield ["ls", "--namespace", self.namespace, *as_json], 0
            yield ["show", self.entry, *as_json], 0
            yield ["examples", "stats", *as_json], 0
            yield ["invalidate", "--tag", self.tag, "--dry-run", *as_json], 0
            yield ["doctor", *as_json], 1
            yield ["promote", "--status", *as_json], 0
        yield ["show", "[/x]\\[/y]\x1b]0;t\x07\u202e"], 2
        yield ["show", "--\x1b]0;t\x07[/x]\u202e\x9b"], 2
        yield ["\x9b31m[/x]\u202e"], 2
        yield ["ls", "--limit", "\x1b[31m[/x]\u202e"], 2
        yield ["ls", "\x1b[31m[/x]", "\x9d0;t\x9c"], 2
        yield ["ls", "--path", self.path / named("none \x1b[31m[b]")], 2
        yield ["examples", "\x1b[31m[/x]\u202e"], 2
        yield ["invalidate", "--before", "\x1b[31m[/x]"], 2
        yield ["clear", "--namespace", self.namespace], 1
        yield ["learn", "pairs", "--out", self.pairs], 1
        yield ["replay", self.out / named("none [b]\x1b")], 2
        yield ["learn", "threshold", self.out / named("none [b]\x1b")], 2
        yield ["rebuild", "--path", self.path / named("\x1b[31m[b]")], 2

    def slow(self) -> Iterator[tuple[list[object], int]]:
        """Those that compute, or write."""
        for as_json in ([], ["--json"]):
            yield ["examples", "select", self.questions[3], "-k", 9, *as_json], 0
            yield ["export", "--out", self.out / "export", "--documents", "keep", "--force", *as_json], 0
            yield ["learn", "compare", self.pairs, "--model", "[/x]\x1b[1m", *as_json], 0
        yield ["learn", "pairs", "--out", self.out / "pairs", "--yes"], 0
        yield (
            [
                "learn",
                "ask",
                self.pairs,
                "--teacher",
                "a:[/x]\x1b[31m",
                "--yes",
                "--out",
                self.out / "labelled",
            ],
            0,
        )
        yield (
            [
                "replay",
                self.workload,
                "--scorer",
                "cosine",
            ],
            0,
        )
        yield ["report", "--out", self.out / "report [b].html"], 0
        yield ["--help"], 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same for all."""
    found = Place(tmp_path_factory.mktemp("place"))
    found.out.mkdir()
    return found


command_of = functools.cache(typer.main.get_command)  # typer makes all commands anew at each call


class Ran:
    """What a command wrote."""

    def __init__(self, code: object, out: bytes, err: bytes, encoding: str) -> None:
        self.code = code
        self.out, self.err = out.decode(encoding), err.decode(encoding)


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs the command's entry point in this process, with streams of an encoding."""
    monkeypatch.setenv("IBIDEM_PATH", str(place.path))
    for one in (output.out, output.err):  # made when the first test imported them
        monkeypatch.setattr(one, "_width", 600)
    monkeypatch.setattr("typer.main.get_command", command_of)
    for module in ("ibidem_lab.cli.fit", "ibidem_lab.cli.export", "ibidem.cli.examples"):
        name = f"{module}.checked_active_embedder"
        monkeypatch.setattr(name, lambda settings, store: checked(place.embedder))
    for module in ("tune", "replay"):
        monkeypatch.setattr(f"ibidem_lab.cli.{module}.resolve_embedder", lambda name: place.embedder)
    finding = Finding("database", False, hostile(random.Random(3), "finding"))
    monkeypatch.setattr("ibidem.cli.commands.examine", lambda settings, begin: [finding])
    teacher = (lambda prompt: "yes", "[/x]\x1b[31m")
    monkeypatch.setattr("ibidem_lab.labelling.teach.resolve_teacher", lambda name: teacher)

    def ran(arguments: list[object], encoding: str, errors: str = "strict") -> Ran:
        streams = [io.BytesIO(), io.BytesIO()]
        wrapped = [io.TextIOWrapper(one, encoding=encoding, errors=errors) for one in streams]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["ibidem", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"n\xff\n"), encoding="utf-8"))
            patch.setattr(sys, "stdout", wrapped[0])
            patch.setattr(sys, "stderr", wrapped[1])
            with pytest.raises(SystemExit) as ended:
                main()
            for one in wrapped:
                one.flush()
        return Ran(ended.value.code or 0, *(one.getvalue() for one in streams), encoding)

    return ran


def checked(embedder: BagOfWords) -> Any:
    """As a command gets it."""
    from ibidem.embedding.base import CheckedEmbedder

    return CheckedEmbedder(embedder, lambda _, value: value)


@pytest.mark.parametrize("encoding", ["utf-8:surrogateescape", "ascii", "latin-1", "cp1252"])
def test_no_command_fails_or_obeys(place: Place, run: Callable[..., Ran], encoding: str) -> None:
    """Whatever is stored, given on the command line, or the name of a file; JSON stays JSON."""
    name, _, errors = encoding.partition(":")
    slow = place.slow() if encoding == "cp1252" else ()
    for arguments, code in (*place.quick(), *slow):
        ran = run(arguments, name, errors or "strict")
        said = (arguments, ran.out[-2000:], ran.err[-2000:])

        assert ran.code == code, said
        assert not OBEYED.search(ran.out + ran.err), said
        assert "Traceback" not in ran.err, said
        assert ran.out + ran.err, said
        if "--json" in arguments:
            assert json.loads(ran.out) is not None, said


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_every_question_is_shown(place: Place, run: Callable[..., Ran], encoding: str) -> None:
    """Word for word: as text in tables, and unchanged in JSON."""
    for command in ("ls", "log", "examples"):
        shown = run([command, "--limit", 200], encoding).out
        found = json.loads(run([command, "--limit", 200, "--json"], encoding).out)
        assert {row["question"] for row in found} >= set(place.questions)
        if command == "examples":  # cut after 80 characters
            continue
        for text in place.questions:
            line = plain(text).encode(encoding, "backslashreplace").decode(encoding).split("\n")[0]
            assert line.expandtabs().split("  ")[0].rstrip() in shown, (command, text)


# real processes -----------------------------------------------------------------------------------------


def environment(place: Place, **more: str) -> dict[str, str]:
    """Of a process that uses the place."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "IBIDEM_PATH": str(place.path), **more}


def started(place: Place, command: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own."""
    program = f"exec {sys.executable} -c 'from ibidem.cli import main; main()'"
    options = {"stdout": subprocess.PIPE, **options, "env": environment(place, **options.get("env", {}))}
    return subprocess.Popen(f"{program} {command}", shell=True, cwd=ROOT, stderr=subprocess.PIPE, **options)


@pytest.mark.slow
def test_streams_of_the_system(place: Place, tmp_path: Path) -> None:
    """Encodings set from outside, a locale without any, a stream that is closed."""
    bare = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    plain_name = {"IBIDEM_PATH": str(shutil.copytree(place.path, tmp_path / "plain"))}
    ways: list[tuple[dict[str, str], str]] = [
        ({"PYTHONIOENCODING": "cp1252"}, "log --limit 100"),
        (bare | plain_name, "log"),
        ({}, "log >&-"),
    ]
    runs = [started(place, command, env=more) for more, command in ways]
    said = [one.communicate(timeout=120) for one in runs]

    for one, (out, err), (more, command) in zip(runs, said, ways, strict=True):
        assert (one.returncode, err) == (0, b""), (more, command)
        assert out or ">&-" in command


@pytest.mark.slow
def test_a_closed_pipe_ends_a_command_silently(place: Place) -> None:
    """`ibidem log | head -1`; also one that would go on for ever."""
    commands = ("log --limit 100", "stats --watch 0.1 --json")
    runs = []
    for command in commands:
        read, write = os.pipe()
        runs.append(started(place, command, stdout=write))
        os.close(read)
        os.close(write)
    said = [one.communicate(timeout=120)[1] for one in runs]

    assert dict(zip(commands, said, strict=True)) == dict.fromkeys(commands, b"")
    assert {one.returncode for one in runs} <= {0, 1}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.slow
def test_on_a_terminal_colours_are_ours_and_nothing_else(place: Place) -> None:
    """The only sequences are colours of rich: no link, no title, no raw C1."""
    import pty

    for command in ("log --limit 100", "log --json --limit 100"):
        ours, theirs = pty.openpty()
        more = {"TERM": "xterm-256color", "COLUMNS": "300", "PYTHONIOENCODING": "utf-8"}
        child = started(place, f"{command} 2>&1", stdin=theirs, stdout=theirs, env=more)
        os.close(theirs)
        written = b""
        with suppress(OSError):  # the other end is closed
            while select.select([ours], [], [], 60)[0]:
                written += os.read(ours, 65_536)
        os.close(ours)
        child.communicate(timeout=60)
        bare = re.sub(r"\x1b\[[0-9;]*m", "", written.decode("utf-8")).replace("\r\n", "\n")

        assert "\x1b[" in written.decode("utf-8")
        assert not OBEYED.search(bare), command
