"""The console of the command line: options that commands share, and how they print.

Whatever text is shown, rich and the terminal obey no part of it.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import rich.console
import typer
from rich.highlighter import JSONHighlighter
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ibidem.errors import IbidemError, InvalidInput
from ibidem.runtime import open_store
from ibidem.settings import Settings, read_settings
from ibidem.storage.store import Store
from ibidem.types import Entry, storable

Row = TypeVar("Row")
#: Is told the name of a step, how much of it is done, and of how much; 0 if that is not known.
ShowProgress = Callable[[str, int, int], None]

_AGO = re.compile(r"([0-9]{1,9})([mhdw])")
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SUSPECT = re.compile(r"[^\n\t\x20-\x7e\u200c\u200d]")
# A joiner stays where it has an effect: within emoji, or within words of a script that needs it.
_LONE_JOINER = re.compile(
    r"(?<![^\x00-\x7f\u200c\u200d])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\u200c\u200d])"
)
_NO_ASCII = re.compile(r"[^\n\x20-\x7e]")


def plain(text: str) -> str:
    r"""Return the text with control and invisible characters as escapes such as `\x1b`."""
    if text.isprintable():
        return text
    shown = _SUSPECT.sub(lambda found: _visible(found[0]), text.replace("\r\n", "\n"))
    return _LONE_JOINER.sub(lambda found: _visible(found[0]), shown)


def _visible(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) == "Zs":
        return char
    return char.encode("unicode_escape").decode("ascii")


class Console(rich.console.Console):
    """A console that prints every `str` as plain text: no markup, no `:emoji:` names, no control codes.

    Styled text is a `rich.text.Text`, made by `styled`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Override rich's method, through which every printed `str` goes, in cells and titles too."""
        return super().render_str(self.shown(text), **{**options, "markup": False, "emoji": False})

    def shown(self, text: str) -> str:
        """Return the text as it will be written, as a table must know its width."""
        text = plain(text).expandtabs()
        if is_unicode(self.encoding):
            return text
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)


def styled(text: str, style: str) -> Text:
    """Return any text in a style of rich."""
    return Text(plain(text).expandtabs(), style)


def is_unicode(encoding: str) -> bool:
    """Return whether the encoding has all characters."""
    return encoding.lower().startswith("utf")


def json_text(value: Any, encoding: str) -> str:
    """Serialize to JSON; control characters, and those that the encoding lacks, are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=not is_unicode(encoding))
    return _NO_ASCII.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


def accept_any_encoding() -> None:
    """Make the standard streams escape what they cannot encode or decode."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


out = Console()
err = Console(stderr=True)


def _whole_text(given: Any) -> Any:
    """Refuse arguments that are no text: bytes of another encoding arrive as surrogates."""
    for text in [given] if isinstance(given, str) else given or ():
        if not storable(text):
            raise typer.BadParameter(
                f"{text!r} holds NUL or half a character; is the terminal's encoding right?"
            )
    return given


text_option = partial(typer.Option, callback=_whole_text)
text_argument = partial(typer.Argument, callback=_whole_text)

PathOption = Annotated[
    Path | None,
    typer.Option("--path", help="Directory of the cache; default: IBIDEM_PATH, else your own."),
]
DatabaseOption = Annotated[
    str | None,
    text_option("--database", help="SQLAlchemy URL, if the cache is on a database server."),
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="How many.")]
NamespaceOption = Annotated[str | None, text_option("--namespace", help="Only this namespace.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
IdArgument = Annotated[str, text_argument(metavar="ID", help="An id, or the beginning of one.")]
PricesOption = Annotated[
    Path | None,
    typer.Option("--prices", help="A JSON file of prices per million tokens; default: IBIDEM_PRICES."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def settings_of(path: Path | None, database: str | None, chroma: str | None = None) -> Settings:
    """Read the settings of the cache at this location."""
    return read_settings(path=path, database=database, chroma=chroma)


@contextmanager
def sentences() -> Iterator[None]:
    """Print Ibidem's errors as one sentence instead of a traceback."""
    try:
        yield
    except IbidemError as error:
        fail(str(error))


@contextmanager
def existing_store(path: Path | None, database: str | None) -> Iterator[Store]:
    """Open the database of an existing cache; never creates one."""
    with sentences():
        settings = settings_of(path, database)
        require_cache(settings)
        store = open_store(settings, create=False)
        try:
            yield store
        finally:
            store.close()


def require_cache(settings: Settings) -> None:
    """Exit if there is no cache at this location."""
    if settings.database is None and not settings.database_file.is_file():
        fail(f"there is no cache in {settings.path}; give its directory with --path or IBIDEM_PATH")


def bars() -> Progress:
    """Bars on stderr for what takes more than a second, if that is a terminal; gone when they end."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def progress(first: str) -> Iterator[ShowProgress]:
    """Show how far each step is, a bar for each; until one is told, that the step `first` goes on."""
    with bars() as shown:
        tasks: dict[str, TaskID] = {first: shown.add_task(first, total=None)}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = shown.add_task(step, total=None)
            if step != first and first in tasks:
                shown.remove_task(tasks.pop(first))
            shown.update(tasks[step], completed=done, total=max(done, total) if total else None)

        yield show


def fail(message: str) -> NoReturn:
    """Print an error, and exit with code 2."""
    err.print(styled("error:", "red"), message, soft_wrap=True)
    raise typer.Exit(2)


def confirmed(question: str, *, on_stderr: bool = False) -> bool:
    """Ask the user for confirmation."""
    return typer.confirm((err if on_stderr else out).shown(question), err=on_stderr)


def print_json(value: Any) -> None:
    """Print for programs."""
    text = json_text(value, out.encoding)
    out.print(JSONHighlighter()(text) if out.is_terminal else Text(text), soft_wrap=True)


def print_list(
    rows: Sequence[Row],
    as_json: bool,
    plainly: Callable[[Row], Any],
    table: Callable[[Sequence[Row]], Table],
    nothing: str,
) -> None:
    """Print rows for programs or as a table; `nothing` if there are none."""
    if as_json:
        print_json([plainly(row) for row in rows])
    else:
        out.print(table(rows) if rows else nothing)


def entry_of(store: Store, prefix: str) -> Entry:
    """Return the entry whose id begins with `prefix`; exit if there is none, or several."""
    found = store.entries.find(prefix)
    if len(found) != 1:
        ids = ", ".join(entry.id[:12] for entry in found)
        none = f"no entry begins with {prefix!r}; `ibidem ls` lists the newest with their ids"
        fail(f"several entries begin so: {ids}" if found else none)
    return found[0]


def moment(name: str, given: str) -> float:
    """Parse a time to seconds since the epoch: `3d` (three days ago) or `2026-01-31T12:00Z`.

    Raises:
        InvalidInput: It is neither; the message names the option.
    """
    if ago := _AGO.fullmatch(given):
        return time.time() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        found = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", given))
    except ValueError:
        found = datetime.min
    if found.tzinfo is None:
        raise InvalidInput(
            f"{name} must be a time with its zone, like 2026-01-31T12:00Z or 2026-01-31T12:00+02:00, "
            f"or an age like 30m, 12h, 3d, 2w; not {given!r}"
        )
    return found.timestamp()
