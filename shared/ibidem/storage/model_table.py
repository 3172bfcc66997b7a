"""The table `model_files`: promoted models, in pieces, so that no writer waits long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from ibidem.storage.engine import fetch_column, insert_into, reading, writing
from ibidem.storage.tables import model_files as _files

PIECE_BYTES = 2**20  # in one row


class ModelFilesTable:
    """The table `model_files`. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def put(self, model: str, file: Path) -> None:
        """Store one file of a model, replacing what is stored of it."""
        insert, pieces = insert_into(self._engine.dialect.name)(_files), 0
        with file.open("rb") as content:
            while data := content.read(PIECE_BYTES):
                row = insert.values(model=model, file=file.name, part=pieces, data=data)
                key = [_files.c.model, _files.c.file, _files.c.part]
                with writing(self._engine) as db:
                    db.execute(row.on_conflict_do_update(index_elements=key, set_={"data": data}))
                pieces += 1
        longer = sa.delete(_files).where(_of(model, file.name), _files.c.part >= pieces)
        with writing(self._engine) as db:
            db.execute(longer)

    def names(self, model: str) -> set[str]:
        """Return the names of the files stored for a model."""
        return set(
            fetch_column(self._engine, sa.select(_files.c.file).where(_files.c.model == model).distinct())
        )

    def pieces(self, model: str, file: str) -> Iterator[bytes]:
        """Yield the content of one file."""
        query = sa.select(_files.c.data).where(_of(model, file), _files.c.part == sa.bindparam("part"))
        with reading(self._engine) as db:
            part = 0
            while (data := db.scalar(query, {"part": part})) is not None:
                yield data
                part += 1


def _of(model: str, file: str) -> sa.ColumnElement[bool]:
    return sa.and_(_files.c.model == model, _files.c.file == file)
