"""Copies of what holds a cache ask the same cache; pickles open it anew, elsewhere, and hold no secret."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import ibidem
from ibidem.cache import SemanticCache, UnopenedCache
from ibidem.errors import CacheClosed, ConfigurationError, InvalidInput, StorageError
from ibidem.opening import Opening
from ibidem.settings import read_settings
from tests.conftest import OpenCache
from tests.embedders import BagOfWords

ASKED = ibidem.Request("What is the capital of France?")
ANSWER = ibidem.Answer("Paris.")


class Guarded(BagOfWords):
    """An embedder with what pickle cannot take, as clients have it."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()


def shouted(text: str) -> str:
    return text.replace("Lima", "L.")


def sent(cache: SemanticCache) -> Any:
    return pickle.loads(pickle.dumps(cache))


def test_a_copy_is_the_cache(open_cache: OpenCache) -> None:
    cache = open_cache()
    assert copy.copy(cache) is cache
    assert copy.deepcopy({"of": [cache]})["of"][0] is cache


def test_a_pickle_opens_with_its_first_use(open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(ttl=60.0, min_similarity=0.9, redact=shouted)
    cache.store(ASKED, ANSWER)
    opened: list[Any] = []
    real = SemanticCache.__init__
    monkeypatch.setattr(
        SemanticCache, "__init__", lambda self, *a, **k: [opened.append(self), real(self, *a, **k)][1]
    )
    other = sent(cache)
    assert isinstance(other, SemanticCache)
    assert repr(other) == "SemanticCache(not opened yet)"
    assert copy.deepcopy(other) is other
    again = sent(other)
    assert opened == []
    assert other.lookup(ASKED).answer.text == "Paris."
    assert opened == [other]
    assert type(other) is SemanticCache
    assert (other._lifetime, other.policy) == (cache._lifetime, cache.policy)
    assert isinstance(other.store(ASKED, ibidem.Answer("Lima.")), ibidem.Rejected), "redact came along"
    assert type(sent(other)) is UnopenedCache
    other.close()
    assert again.lookup(ASKED).answer.text == "Paris."
    again.close()


def test_threads_open_it_once(open_cache: OpenCache) -> None:
    cache = open_cache()
    cache.store(ASKED, ANSWER)
    other, start = sent(cache), threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        start.wait()
        found.append(other.lookup(ASKED))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [hit.answer.text for hit in found] == ["Paris."] * 8
    assert cache._runtime.users == 2
    other.close()


def test_one_that_was_closed_before_is_not_opened(open_cache: OpenCache) -> None:
    other = sent(open_cache())
    other.close()
    with pytest.raises(CacheClosed):
        other.lookup(ASKED)


def test_a_place_that_is_gone_is_not_tried_at_each_call(
    open_cache: OpenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(path=tmp_path / "gone")
    raw = pickle.dumps(cache)
    cache.close()
    tried: list[Any] = []

    def refuse(*given: Any) -> Any:
        tried.append(given)
        raise StorageError("no")

    monkeypatch.setattr("ibidem.cache.build_parts", refuse)
    other = pickle.loads(raw)
    for _ in range(3):
        with pytest.raises(StorageError):
            other.lookup(ASKED)
    assert len(tried) == 1
    monkeypatch.undo()
    monkeypatch.setattr("ibidem.cache.REOPEN_SECONDS", 0.0)
    assert isinstance(other.lookup(ASKED), ibidem.Miss)
    other.close()


# secrets ----------------------------------------------------------------------------------------------

SECRETS: dict[str, list[Any]] = {
    "database": [
        "postgresql+psycopg://me:s3cret@db/answers",
        "postgresql+psycopg://me:p%40s3cret@db:5432/answers",
        "postgresql://db/answers?user=me&password=s3cret",
        "postgresql://db/answers?sslpassword=s3cret",
        "postgresql://me:s3cret@[db/answers",
    ],
    "chroma": ["http://me:s3cret@index:8000", "https://s3cret@index"],
    "chroma_headers": [{"Authorization": "Bearer s3cret"}],
}
OPEN = {
    "database": [
        "postgresql+psycopg://me@db/answers",
        "sqlite:////srv/answers.db",
        "postgresql:///?sslrootcert=/a/b",
    ],
    "chroma": ["http://index:8000"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, all_ in SECRETS.items() for value in all_]
)
def test_a_secret_is_never_in_a_pickle(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(**{name: value})
    with pytest.raises(ConfigurationError, match=f"IBIDEM_{name.upper()}") as raised:
        Opening.of(settings, {})
    assert "s3cret" not in str(raised.value)

    given = value if isinstance(value, str) else '{"Authorization": "Bearer s3cret"}'
    monkeypatch.setenv(f"IBIDEM_{name.upper()}", given)
    opening = Opening.of(settings, {})
    raw = pickle.dumps(opening)
    assert b"s3cret" not in raw
    assert pickle.loads(raw).read() == settings
    monkeypatch.delenv(f"IBIDEM_{name.upper()}")
    with pytest.raises(ConfigurationError, match=f"needs IBIDEM_{name.upper()} in the environment"):
        opening.read()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, all_ in OPEN.items() for value in all_])
def test_what_is_no_secret_travels(name: str, value: Any) -> None:
    settings = read_settings(**{name: value})
    assert pickle.loads(pickle.dumps(Opening.of(settings, {}))).read() == settings


def test_the_environment_of_the_other_process_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IBIDEM_TTL", "60")
    monkeypatch.setenv("IBIDEM_PATH", str(tmp_path))
    settings = read_settings(max_entries=7)
    opening = Opening.of(settings, {})
    for name, value in {
        "TTL": "5",
        "PATH": "/elsewhere",
        "DATABASE": "sqlite://",
        "THRESHOLD": "0.9",
    }.items():
        monkeypatch.setenv(f"IBIDEM_{name}", value)
    assert opening.read() == settings
    assert (settings.ttl, settings.path, settings.database) == (60.0, tmp_path, None)


# objects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("embedder", Guarded()),
        ("redact", lambda text: text),
        ("compare", lambda *texts: True),
        ("on_lookup", lambda request, result: threading.Lock()),
    ],
)
def test_what_cannot_be_pickled_is_named(name: str, given: Any, open_cache: OpenCache) -> None:
    cache = open_cache(**{name: given})
    for module in ("cloudpickle", "joblib.externals.cloudpickle", "dill"):
        takes = name != "embedder" or module == "dill"
        if takes and module in sys.modules:
            pytest.skip(f"{module}, which another test has loaded, takes it")
    with pytest.raises(InvalidInput, match=f"with this {name} .* open the cache in the other process"):
        pickle.dumps(cache)
    assert copy.deepcopy(cache) is cache


def test_a_cache_put_together_by_hand(open_cache: OpenCache) -> None:
    cache = open_cache()
    cache.opened_with = None
    with pytest.raises(InvalidInput, match=r"ibidem\.open"):
        pickle.dumps(cache)


LOADING = """
import pickle, sys
import ibidem
cache = pickle.load(open(sys.argv[1], "rb"))
assert "chromadb" not in sys.modules, "it is opened when it is used"
print(cache.lookup(ibidem.Request("What is the capital of France?")).answer.text)
print(cache.store(ibidem.Request("And of Peru?"), ibidem.Answer("Lima.")).entry_id)
cache.close()
"""


def test_it_opens_in_another_process_that_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ibidem.open("here", embedder=BagOfWords()) as cache:
        cache.store(ASKED, ANSWER)
        (tmp_path / "raw").write_bytes(pickle.dumps(cache))
    root = Path(__file__).parents[2]
    paths = {"PYTHONPATH": f"{root}:{root / 'shared'}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path / "raw")],
        cwd="/",
        env=paths,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("Paris.\n")
    with ibidem.open("here", embedder=BagOfWords()) as cache:
        assert cache.lookup(ibidem.Request("And of Peru?")).answer.text == "Lima."
