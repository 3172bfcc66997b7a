"""What the shipped pair model reads in pairs of questions: its logit and its last state, kept on disk.

A run that was killed goes on where it was: each pair that was read is appended to a file at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ibidem.embedding.model_files import MODEL_FILE, TOKENIZER_FILE, open_directory
from ibidem.embedding.onnx_model import OnnxModel, encodable
from ibidem_lab.files import append_private
from ibidem_lab.learning.verifier_files import Shipped

BATCH = 8  # pairs that are read at once
STATES = "states.bin"  # what was read, in the working directory
_KEY = 16  # bytes of a pair's digest

Texts = tuple[str, str]


class Reader:
    """The states of pairs, read by the shipped pair model or remembered. A context manager.

    Args:
        shipped: The model.
        kept: The file that remembers what was read; it holds digests of pairs and numbers, no texts.
    """

    def __init__(self, shipped: Shipped, kept: Path) -> None:
        self._shipped, self._kept, width = shipped, kept, len(shipped.weights)
        self._row = np.dtype([("key", f"V{_KEY}"), ("state", np.float32, (width,))])
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def __enter__(self) -> Reader:
        self._scratch = TemporaryDirectory(prefix="ibidem-learn-")
        folder = Path(self._scratch.name)
        (folder / MODEL_FILE).write_bytes(self._shipped.states_graph())
        (folder / TOKENIZER_FILE).write_bytes((self._shipped.directory / TOKENIZER_FILE).read_bytes())
        self._model = OnnxModel(open_directory(folder), rank=2, threads=1)
        self._load()
        self._file = append_private(self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._scratch.cleanup()

    def _load(self) -> None:
        """Read what is remembered; a kill may leave a torn row behind, which is cut off."""
        if not self._kept.exists():
            return
        held = self._kept.read_bytes()
        whole = len(held) // self._row.itemsize
        if len(held) % self._row.itemsize:
            with self._kept.open("r+b") as file:
                file.truncate(whole * self._row.itemsize)
        rows = np.frombuffer(held, self._row, count=whole)
        self._known = {bytes(row["key"]): row["state"] for row in rows}

    def states(
        self, pairs: Sequence[Texts], seen: Callable[[int], object] = lambda count: None
    ) -> NDArray[np.float32]:
        """Return the state of each pair, (n, width); NaN for one that the window does not hold.

        `seen` is called with how many more are done.
        """
        keys = [self._key(pair) for pair in pairs]
        lacking = list({key: at for at, key in enumerate(keys) if key not in self._known}.values())
        seen(len(pairs) - len(lacking))
        lacking.sort(key=lambda at: len(pairs[at][0]) + len(pairs[at][1]))
        for start in range(0, len(lacking), BATCH):
            some = lacking[start : start + BATCH]
            for at, state in zip(some, self._read([pairs[at] for at in some]), strict=True):
                self._known[keys[at]] = state
                row = np.array([(np.frombuffer(keys[at], f"V{_KEY}")[0], state)], self._row)
                self._file.write(row.tobytes())
            seen(len(some))
        found = np.empty((len(pairs), len(self._shipped.weights)), np.float32)
        for at, key in enumerate(keys):
            found[at] = self._known[key]
        return found

    def _key(self, pair: Texts) -> bytes:
        hashed = blake2b(self._shipped.name.encode(), digest_size=_KEY)
        for text in sorted(pair):
            hashed.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
        return hashed.digest()

    def _read(self, pairs: Sequence[Texts]) -> NDArray[np.float32]:
        tokenizer, window = self._model.loaded().tokenizer, self._shipped.window
        texts = [sorted(map(encodable, pair)) for pair in pairs]
        rows = [tokenizer.encode(one, other).ids for one, other in texts]
        found = np.full((len(pairs), len(self._shipped.weights)), np.nan, np.float32)
        inside = [at for at, row in enumerate(rows) if len(row) <= window]
        if inside:
            ids = np.zeros((len(inside), max(len(rows[at]) for at in inside)), np.int64)
            mask = np.zeros_like(ids)
            for place, at in enumerate(inside):
                ids[place, : len(rows[at])], mask[place, : len(rows[at])] = rows[at], 1
            found[inside] = self._model.run(ids, mask).astype(np.float32)
        return found
