"""Where the commands write: whatever text is shown, rich and the terminal obey no part of it."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import rich.console
import typer
import typer.core
import typer.main
from rich.text import Text

from ibidem.renamed import ARGUMENTS

_SUSPECT = re.compile(r"[^\n\t\x20-\x7e\u200c\u200d]")
# A joiner stays where it has an effect: within emoji, or within words of a script that needs it.
_LONE_JOINER = re.compile(
    r"(?<![^\x00-\x7f\u200c\u200d])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\u200c\u200d])"
)
GROUP = "ibidem.commands"  # of entry points: commands of plugins
_NO_ASCII = re.compile(r"[^\n\x20-\x7e]")
_UsageError: Any = typer.BadParameter.__base__


def plain(text: str) -> str:
    r"""The text as a terminal may get it: what controls one, or is not seen, as an escape such as `\x1b`."""
    if text.isprintable():
        return text
    shown = _SUSPECT.sub(lambda found: _visible(found[0]), text.replace("\r\n", "\n"))
    return _LONE_JOINER.sub(lambda found: _visible(found[0]), shown)


def _visible(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) == "Zs":
        return char
    return char.encode("unicode_escape").decode("ascii")


class Console(rich.console.Console):
    """A console to which every `str` is text: no markup, no `:emoji:` names, nothing for the terminal.

    What is styled is passed as a `rich.text.Text`, made by `styled`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's; every `str` that is printed goes through here, in cells and titles too."""
        return super().render_str(self.shown(text), **{**options, "markup": False, "emoji": False})

    def shown(self, text: str) -> str:
        """The text as it is written; not left to the stream, as a table must know how wide it becomes."""
        text = plain(text).expandtabs()
        if is_unicode(self.encoding):
            return text
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)


def styled(text: str, style: str) -> Text:
    """Any text, in a style of rich."""
    return Text(plain(text).expandtabs(), style)


def is_unicode(encoding: str) -> bool:
    """Whether the encoding has all characters."""
    return encoding.lower().startswith("utf")


def json_text(value: Any, encoding: str) -> str:
    """As JSON: within its strings what controls a terminal, or what the encoding lacks, is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=not is_unicode(encoding))
    return _NO_ASCII.sub(lambda found: found[0] if found[0].isprintable() else _escaped(found[0]), text)


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


def accept_any_encoding() -> None:
    """From now on no stream fails: what it cannot encode, or decode, becomes an escape."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Mistakes on the command line quote it, and are printed by typer."""
    try:
        yield
    except _UsageError as error:
        option = getattr(error, "option_name", "") or ""
        if renamed := ARGUMENTS.get(option.removeprefix("--").replace("-", "_")):
            error.message = f"{option} is called --{renamed.replace('_', '-')} since version 0.2"
            error.possibilities = None
        error.message = plain(error.message)
        raise


class Commands(typer.core.TyperGroup):
    """Our commands, then those of plugins; mistakes are told as plainly as all else.

    A plugin is an entry point of the group `ibidem.commands`: a function for `typer`, loaded when its command
    is called, or `--help` lists all.
    """

    def list_commands(self, context: Any) -> list[str]:
        """Names in the order in which they are shown."""
        return [*super().list_commands(context), *sorted(_plugins())]

    def get_command(self, context: Any, name: str) -> Any:
        """Find a command by its name; None if there is none."""
        found = super().get_command(context, name)
        return _load(_plugins()[name]) if found is None and name in _plugins() else found

    def make_context(self, *args: Any, **options: Any) -> Any:
        """See click; it reads the arguments of this group."""
        with _told_plainly():
            return super().make_context(*args, **options)

    def invoke(self, context: Any) -> Any:
        """See click; it reads the arguments of a command, and runs it."""
        with _told_plainly():
            return super().invoke(context)


@cache
def _plugins() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUP)}


@cache
def _load(plugin: EntryPoint) -> Any:
    """Make a plugin's command; where it cannot be imported, one that says why."""
    try:
        run = plugin.load()
    except ImportError as error:
        reason = str(error)

        def run() -> None:
            Console(stderr=True).print(styled("error:", "red"), reason, soft_wrap=True)
            raise typer.Exit(2)

        run.__doc__ = f"Not installed: {reason}"
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    any_arguments = {"ignore_unknown_options": True, "allow_extra_args": True}
    one.command(plugin.name, context_settings=any_arguments if run.__doc__.startswith("Not inst") else None)(
        run
    )
    return typer.main.get_command(one)
