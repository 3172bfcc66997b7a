"""Draws `docs/img/terminal.svg`, a still of a terminal: what is shown there was run.

    python -m tests.terminal_still            # or with another file to write

A stand-in for a model answers here, so the time of a miss is its (and at the first, that of loading the
embedding model); that of a hit is measured.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from pathlib import Path

from langchain_core.language_models import FakeListChatModel
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import langchain_ibidem
from ibidem.cli.commands import app
from ibidem.cli.output import out

FILE = Path(__file__).parent.parent / "docs" / "img" / "terminal.svg"
WIDTH = 104
MODEL_SECONDS = 0.8
ANSWERS = {
    "How long can I return goods?": "Within 30 days, with the receipt.",
    "How long can I return the goods?": "",
    "How long can I not return goods?": "After 30 days, or without it.",
    "Can I return shoes after 20 days?": "Yes, unworn.",
    "Can I return shoes after 40 days?": "No, but exchange them.",
}
THEME = TerminalTheme(
    (18, 22, 29),
    (232, 237, 244),
    [
        *((60, 68, 80), (242, 119, 119), (111, 211, 164), (242, 179, 107)),
        *((143, 176, 255), (205, 160, 250), (120, 205, 220), (232, 237, 244)),
    ],
)
FONTS = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'


def draw(file: Path) -> None:
    """Ask, look into the log, and write what a terminal showed."""
    with tempfile.TemporaryDirectory() as place:
        shown = _recorded(out)
        asked = "[bold]$ python shop.py[/]   [dim]# langchain_ibidem.install(), then model.invoke(...)[/]"
        shown.print(Text.from_markup(asked))
        _ask(shown, place)
        shown.print(Text("\n$ ibidem log", "bold"), end="")
        app(["log", "--path", place], standalone_mode=False)
    file.write_text(shown.export_svg(title="", theme=THEME, code_format=_form()), encoding="utf-8")


def _ask(shown: Console, place: str) -> None:
    langchain_ibidem.install(path=place)
    try:
        model = FakeListChatModel(responses=list(filter(None, ANSWERS.values())), sleep=MODEL_SECONDS)
        for question in ANSWERS:
            started = time.perf_counter()
            answer = model.invoke(question)
            took = 1000 * (time.perf_counter() - started)
            told = answer.response_metadata.get("ibidem")
            whence = f"[green]cache, {told['similarity']:.2f}[/]" if told else "[yellow]model[/]"
            line = f"{question:35}{answer.text:36}{took:4.0f} ms  {whence}"
            shown.print(Text.from_markup(line))
    finally:
        langchain_ibidem.uninstall()


def _recorded(console: Console) -> Console:
    """The console of the command line, with a fixed width, into a recording."""
    console.file, console.record, console.width = io.StringIO(), True, WIDTH
    return console


def _form() -> str:
    """Rich's picture of a terminal without the fonts that it would load from elsewhere."""
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return form.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else FILE)
