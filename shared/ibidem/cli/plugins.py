"""Commands from elsewhere: entry points of the group `ibidem.commands`, such as those of `ibidem_lab`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
import typer.core
import typer.main

from ibidem._util.renamed import ARGUMENTS
from ibidem.cli.output import fail, plain
from ibidem.cli.panels import OTHER, place

GROUP = "ibidem.commands"
_UsageError: Any = typer.BadParameter.__base__


@contextmanager
def _corrected_errors() -> Iterator[None]:
    """Correct the error messages of typer: name renamed options, and escape what is quoted."""
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
    """Our commands and those of plugins, by panels (`panels.py`); ours come first in each.

    A plugin is an entry point of the group `ibidem.commands`: a function for `typer`, or a `typer.Typer` with
    subcommands, loaded when its command is called, or when `--help` lists all commands.
    """

    def list_commands(self, context: Any) -> list[str]:
        """Return the names of the commands in the order of display."""
        names = [*super().list_commands(context), *sorted(_plugins())]
        return sorted(names, key=lambda name: place(self.get_command(context, name)))

    def get_command(self, context: Any, name: str) -> Any:
        """Find a command by its name; None if there is none."""
        found = super().get_command(context, name)
        return _load(_plugins()[name]) if found is None and name in _plugins() else found

    def make_context(self, *args: Any, **options: Any) -> Any:
        """See click; it reads the arguments of this group."""
        with _corrected_errors():
            return super().make_context(*args, **options)

    def invoke(self, context: Any) -> Any:
        """See click; it reads the arguments of a command, and runs it."""
        with _corrected_errors():
            return super().invoke(context)


@cache
def _plugins() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUP)}


@cache
def _load(plugin: EntryPoint) -> Any:
    """Make a plugin's command; where it cannot be imported, one that says why."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    try:
        loaded = plugin.load()
        if isinstance(loaded, typer.Typer):
            found: Any = typer.main.get_command(loaded)
            found.rich_help_panel = getattr(loaded, "rich_help_panel", OTHER)
            return found
        app.command(plugin.name, rich_help_panel=getattr(loaded, "rich_help_panel", OTHER))(loaded)
    except ImportError as error:
        reason = str(error)
        any_arguments = {"ignore_unknown_options": True, "allow_extra_args": True}
        told = f"Not installed: {reason}"
        app.command(plugin.name, help=told, rich_help_panel=OTHER, context_settings=any_arguments)(
            lambda: fail(reason)
        )
    return typer.main.get_command(app)
