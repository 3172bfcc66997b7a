"""The command line."""

from __future__ import annotations

import sys

from ibidem._util.foreign import foreign_package, has_our_place


def main() -> None:
    """Run the `ibidem` command; without what it needs, or among foreign files, it says what to do."""
    if has_our_place():
        sys.exit(f"error: {foreign_package()}")
    try:
        from ibidem.cli.commands import run
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit("error: the command line needs an optional package: pip install 'ibidem-cache[cli]'")
    run()
