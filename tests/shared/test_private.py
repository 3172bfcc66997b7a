"""Files that hold questions: nobody else may read them, whatever the umask; two runs do not write to one."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ibidem import Answer, Request
from ibidem.cli.commands import app
from ibidem.errors import InvalidInput
from ibidem_lab.files import append_private, lock_file, private_opener, write_private
from ibidem_lab.labelling.pairs import QuestionPair, read_pairs, write_pairs
from ibidem_lab.labelling.teach import Lesson, teach
from tests.helpers import Child, eventually, question, reworded

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of the process, while the test runs."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    """Who may do what with it."""
    return stat.S_IMODE(path.stat().st_mode)


def append(path: Path) -> None:
    """A line."""
    with append_private(path) as file:
        file.write(b"secret")


def overwrite(path: Path) -> None:
    """As `open` does it."""
    with open(path, "wb", opener=private_opener) as file:
        file.write(b"secret")


WAYS: dict[str, Callable[[Path], None]] = {
    "written": lambda path: write_private(path, [b"sec", b"ret"]),
    "appended": append,
    "opened": overwrite,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [None, 0o644, 0o666, 0o604, 0o400 | 0o200])
def test_a_file_is_private(way: str, before: int | None, umask: int, tmp_path: Path) -> None:
    """New, or there before and open to others."""
    file = tmp_path / "file"
    if before is not None:
        file.touch()
        file.chmod(before)

    WAYS[way](file)

    assert mode(file) == 0o600
    assert file.read_bytes() == b"secret"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("way", ["written", "appended"])
def test_who_had_an_open_file_open_sees_nothing_new(way: str, tmp_path: Path) -> None:
    """The right to read is checked when a file is opened: it would outlast a change of the mode."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    file.chmod(0o644)
    with file.open("rb") as spy:
        WAYS[way](file)
        assert spy.read() == b""


@pytest.mark.parametrize("way", WAYS)
def test_a_file_is_private_from_its_first_moment(way: str, tmp_path: Path, monkeypatch) -> None:
    """Not made first and closed then: each mode that a file ever has is looked at."""
    seen: list[int] = []
    real = os.open

    def watched(path: str, flags: int, *more: int, **named: int) -> int:
        handle = real(path, flags, *more, **named)
        if flags & os.O_CREAT:
            seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    before = os.umask(0)
    monkeypatch.setattr(os, "open", watched)
    try:
        WAYS[way](tmp_path / "file")
    finally:
        os.umask(before)

    assert seen == [0o600]


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    """A pipe stays one, a link stays one, and what it leads to becomes private."""
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    link.symlink_to(target)
    target.touch(mode=0o644)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_private(pipe, [b"secret"])
    write_private(link, [b"secret"])
    reader.join(10)

    assert read == [b"secret"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink()
    assert (mode(target), target.read_bytes()) == (0o600, b"secret")


def test_a_write_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    """Also what was there before."""

    def failing() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the disk is full")

    file = tmp_path / "file"
    file.write_bytes(b"before")
    with pytest.raises(OSError, match="full"):
        write_private(file, failing())

    assert file.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o000], indirect=True)
def test_all_that_commands_write_is_private(open_cache, tmp_path: Path, umask: int, monkeypatch) -> None:
    """Questions of a cache in pairs, labels, pages and exports; files 0600, directories 0700."""
    cache = open_cache()
    for n in range(4):
        cache.store(Request(question(n)), Answer(f"answer {n}"))
        cache.lookup(Request(reworded(n)))
    cache.close()
    embedder = cache._runtime.embedder
    for module in ("ibidem_lab.cli.fit", "ibidem_lab.cli.export", "ibidem.cli.examples"):
        monkeypatch.setattr(f"{module}.checked_active_embedder", lambda settings, store: embedder)
    place, made = str(tmp_path / "cache"), tmp_path / "made"
    made.mkdir(mode=0o755)
    for name in ("pairs.jsonl", "report.html"):
        (made / name).touch()
        (made / name).chmod(0o666)

    def run(*arguments: object) -> None:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output

    run("learn", "pairs", "--path", place, "--out", made / "pairs.jsonl", "--yes")
    run("report", "--path", place, "--out", made / "report.html")
    run("export", "--path", place, "--out", made / "export", "--documents", "keep")
    teach(read_pairs(made / "pairs.jsonl"), lambda prompt: "yes", out=made / "labelled.jsonl")

    found = {path.relative_to(made): mode(path) for path in made.rglob("*")}
    directories = {path for path in found if (made / path).is_dir()}
    assert {path.name for path in found} >= {"train.jsonl", "manifest.json", "labelled.jsonl"}
    assert {path: found[path] for path in directories} == dict.fromkeys(directories, 0o700)
    files = found.keys() - directories
    assert {path: found[path] for path in files} == dict.fromkeys(files, 0o600)


# two runs on one file -----------------------------------------------------------------------------------

TEACHING = """
import sys, time
from pathlib import Path
from ibidem_lab.labelling.teach import teach
from ibidem_lab.labelling.pairs import read_pairs

def slow(prompt):
    print("asked", flush=True)
    time.sleep(0.05)
    return "yes"

teach(read_pairs(Path(sys.argv[1])), slow, out=sys.argv[2], parallel=1)
print("done", flush=True)
"""


def some(count: int) -> list[QuestionPair]:
    """Pairs without a label."""
    return [QuestionPair(f"asked {n}", f"stored {n}") for n in range(count)]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a lock."""
    monkeypatch.setattr("ibidem_lab.files._LOCK_SECONDS", 0.05)


def test_a_second_run_is_told_who_holds_the_file(tmp_path: Path, hasty: None) -> None:
    """By any name of the file; a killed run holds nothing, and the next goes on where it stopped."""
    pairs, file, link = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    write_pairs(pairs, some(60))
    link.symlink_to(file)
    with Child(TEACHING, pairs, file) as child:
        child.line()
        assert eventually(lambda: file.exists() and len(file.read_bytes().splitlines()) > 2)
        for name in (file, link, tmp_path / "." / "out.jsonl"):
            with pytest.raises(InvalidInput, match=rf"another run \(process {child.process.pid}\)"):
                Lesson(read_pairs(pairs), lambda prompt: "yes", out=name)
        done = CliRunner().invoke(
            app, ["learn", "ask", str(pairs), "--teacher", "a:b", "--out", str(file), "--yes"]
        )
        assert done.exit_code == 2
        child.kill()

    asked: list[str] = []

    def slow(prompt: str) -> str:
        asked.append(prompt)
        return "yes"

    taught = teach(some(60), slow, out=file)
    assert taught.same == 60
    assert len(asked) < 60
    assert not list(tmp_path.glob(".*.held"))


def test_a_lesson_asks_nothing_that_another_run_asked_meanwhile(tmp_path: Path) -> None:
    """Between the cost and the asking the user thinks, and another run may have done it all."""
    file = tmp_path / "out.jsonl"
    asked: list[str] = []

    def teacher(prompt: str) -> str:
        asked.append(prompt)
        return "yes"

    first = Lesson(some(3), teacher, out=file)
    teach(some(3), teacher, out=file)

    assert first.run().same == len(asked) == 3
    assert len(read_pairs(file)) == 3


def test_a_lock_is_free_after_an_error(tmp_path: Path, hasty: None) -> None:
    """And in the end; other files are not held."""
    file = tmp_path / "out"

    def fail_within() -> None:
        with lock_file(file):
            for name, held in ((file, True), (tmp_path / "other", False)):
                message = f"process {os.getpid()}"
                with pytest.raises(InvalidInput, match=message) if held else nullcontext(), lock_file(name):
                    pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_within()
    with lock_file(file):
        pass
    with pytest.raises(FileNotFoundError), lock_file(tmp_path / "none" / "out"):
        pass
    assert not (tmp_path / "none").exists()
