"""Every Python block of the README and the docs runs, top to bottom, as a reader would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("integrations/*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """In one process per page, in an empty directory, with warnings as errors; `text` is what they print."""
    blocks, printed = (
        re.findall(rf"^```{kind}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        for kind in ("python", "text")
    )
    if not blocks:
        pytest.skip("no Python on this page")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert not printed or done.stdout == "".join(printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist."""
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_modules_that_a_page_names_exist(page: Path) -> None:
    """By the end of their paths: `matching/guards.py`."""
    folders = ("shared", "integrations", "tests", "examples")
    files = [
        f"/{path.relative_to(ROOT).as_posix()}" for one in folders for path in (ROOT / one).rglob("*.py")
    ]
    named = re.findall(r"`([a-z0-9_/]+\.py)`", page.read_text("utf-8"))

    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def test_a_clone_is_five_lines_from_its_first_hit() -> None:
    """Of the README; what they run is in the repository, and hits."""
    readme = (ROOT / "README.md").read_text()
    block = readme.split("## Five lines to the first hit")[1].split("```")[1].strip().splitlines()
    (program,) = (line.split()[1] for line in block if line.startswith("python examples/"))
    done = subprocess.run(
        [sys.executable, ROOT / program], capture_output=True, text=True, timeout=120, check=True
    )

    assert len(block) <= 5
    first, again, *_ = done.stdout.splitlines()
    assert first.endswith("asked")
    assert again.endswith("semantic")
    assert again.split("?")[1].split("  ")[0] == first.split("?")[1].split("  ")[0]  # the same answer


def test_the_terminal_in_the_docs_shows_what_is_so(tmp_path: Path) -> None:
    """Drawn anew, it says the same but for times and digits of the cosine, and loads no fonts."""
    command = [sys.executable, "-m", "tests.terminal_still", str(tmp_path / "now.svg")]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    now, kept = (_words(file) for file in (tmp_path / "now.svg", ROOT / "docs/img/terminal.svg"))

    assert now == kept
    assert {"guard:numbers", "semantic", "below_threshold"} <= set(now)
    assert "url(http" not in (tmp_path / "now.svg").read_text()


def _words(svg: Path) -> list[str]:
    """What the picture shows, without numbers and ids."""
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8"))
    words = " ".join(shown).replace("&#160;", " ").split()
    return [word for word in words if not re.fullmatch(r"\d+(\.\d+)?|\d\d[-:]\d\d|[0-9a-f]{8}", word)]


def test_the_readme_names_the_commands_that_exist() -> None:
    """`make X` and `ibidem X` in the docs are real."""
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    import typer
    from typer.main import get_command

    from ibidem.cli.commands import app

    group = get_command(app)
    commands = set(group.list_commands(typer.Context(group)))

    assert set(re.findall(r"`?\bmake ([a-z]+)\b`", text)) <= targets
    assert set(re.findall(r"`ibidem ([a-z]+)", text)) <= commands


def test_the_settings_page_lists_the_commands_as_the_help_does() -> None:
    """Under the same headings, in the same order; each command has one of them."""
    import typer
    from typer.main import get_command

    from ibidem.cli.commands import app
    from ibidem.cli.panels import PANELS

    group = get_command(app)
    context = typer.Context(group)
    listed = [(group.get_command(context, name), name) for name in group.list_commands(context)]
    helped = [(getattr(command, "rich_help_panel", None), name) for command, name in listed]

    text = (ROOT / "docs/settings.md").read_text("utf-8").split("## Commands")[1].split("```\n")[1]
    blocks = [block.splitlines() for block in text.split("\n\n")]
    told = [(block[0].removeprefix("# "), line.split()[1]) for block in blocks for line in block[1:]]

    assert list(dict.fromkeys(told)) == helped
    assert [panel for panel, _ in helped] == sorted((one for one, _ in helped), key=PANELS.index)
