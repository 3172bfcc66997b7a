"""Types of columns that bear damage: SQLite keeps any value in any column, and one bad row must cost one row.

A disk, a tool or a crash may leave text where a number belongs. Read as it is, one such value ends the
reading of all rows, and of what is computed from them. Read by these types it is nothing: None, or zero, or
no text; what cannot be made of that is passed over by `sound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, TypeVar

import sqlalchemy as sa

from ibidem._util.faults import log
from ibidem.types import to_vector

T = TypeVar("T")
Row = TypeVar("Row")

LARGEST = 1e14  # what is beyond is no time in seconds, no count of tokens or bytes, no score
_told = False


class _Sound(sa.types.TypeDecorator[Any]):
    """A type whose values are checked when they are read.

    Args:
        neutral: Stands for a value that is not of the type.
        given: Of the type of the database, such as a length.
    """

    impl: Any = sa.types.NullType  # the subclasses have others
    cache_ok = True

    def __init__(self, neutral: Any = None, *given: Any) -> None:
        super().__init__(*given)
        self.neutral = neutral

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """The value, if it is one of the type."""
        return value if value is None or self.fits(value) else self.neutral

    def fits(self, value: Any) -> bool:
        """Whether the value is of the type."""
        raise NotImplementedError


class Text(_Sound):
    """Text; a text that is no UTF-8 comes as bytes (`decoded`)."""

    impl: Any = sa.Text
    cache_ok = True

    def fits(self, value: Any) -> bool:
        """Text of any length."""
        return isinstance(value, str)


class String(Text):
    """Text of so many characters at most."""

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int, neutral: Any = None) -> None:
        super().__init__(neutral, length)


class Float(_Sound):
    """A finite number."""

    impl = sa.Float
    cache_ok = True

    def fits(self, value: Any) -> bool:
        """A number of a usual size."""
        return isinstance(value, (int, float, Decimal)) and -LARGEST < value < LARGEST


class Integer(_Sound):
    """A whole number."""

    impl = sa.Integer
    cache_ok = True

    def fits(self, value: Any) -> bool:
        """A whole number of a usual size."""
        number = isinstance(value, (int, float, Decimal)) and -LARGEST < value < LARGEST
        return number and value == int(value)


class BigInteger(Integer):
    """A large whole number, such as the sum of others."""

    impl = sa.BigInteger
    cache_ok = True


class LargeBinary(_Sound):
    """Bytes."""

    impl = sa.LargeBinary
    cache_ok = True

    def fits(self, value: Any) -> bool:
        """Bytes of any length."""
        return isinstance(value, (bytes, memoryview))


class UnitVector(LargeBinary):
    """A vector as `ibidem.types.to_bytes` writes it."""

    cache_ok = True

    def fits(self, value: Any) -> bool:
        """Numbers in half precision, of length 1 together."""
        try:
            return super().fits(value) and len(to_vector(value)) > 0
        except ValueError:
            return False


def decoded(raw: bytes) -> str | bytes:
    """SQLite's `text_factory`: text that is no UTF-8 ends no reading, and is told from text by its type."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def sound(convert: Callable[[Row], T], rows: Iterable[Row]) -> Iterator[T]:
    """What the rows are, without those that are damaged; that there are some is logged, once in a process."""
    for row in rows:
        try:
            made = convert(row)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            _tell(error)
        else:
            yield made


def _tell(error: Exception) -> None:
    global _told
    if not _told:
        _told = True
        about = {"event.name": "ibidem.database.damaged_row", "error.type": type(error).__name__}
        log.warning("Ibidem passed over a damaged row of its database; logged once", extra=about)
