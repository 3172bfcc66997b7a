"""The documentation as a site: no warning, no link that leads nowhere, nothing loaded from afar."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.test_docs import ROOT

pytestmark = pytest.mark.slow
SOURCES = ("docs", "shared", "integrations")
LOADING = {(tag, "src") for tag in ("script", "img", "iframe", "source")} | {
    ("link", "href"),
    ("use", "href"),
}


class Page(HTMLParser):
    """What a page names itself, what it leads to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.names.add(value)
            if (tag, name) in LOADING and value:
                self.loads.add(value)
            if (tag, name) == ("a", "href") and value:
                self.links.add(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site, and what was said while it was made."""
    place = tmp_path_factory.mktemp("site")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", place)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(
        command, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240
    )
    assert done.returncode == 0, done.stdout
    return place / "site", done.stdout


@pytest.fixture(scope="module")
def pages(built: tuple[Path, str]) -> dict[Path, Page]:
    """Each page of the site, read."""
    return {file: Page(file.read_text(encoding="utf-8")) for file in built[0].rglob("*.html")}


def test_it_builds_without_a_warning(built: tuple[Path, str]) -> None:
    """`--strict` ends a build at what it takes for an issue; here nothing else is said either."""
    assert "No issues found" in built[1]
    assert not re.search("warn|error|deprecat", built[1], re.IGNORECASE), built[1]


def test_every_page_is_in_the_navigation() -> None:
    """A page that nobody finds is not documentation."""
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    assert sorted(_files(configuration["nav"])) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))
    assert configuration["theme"]["font"] is False


def _files(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, (list, dict)):
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from _files(inner)


def test_every_link_leads_to_a_page_and_a_heading(built: tuple[Path, str], pages: dict[Path, Page]) -> None:
    """Of what stays within the site."""
    checked = 0
    for file, page in pages.items():
        if file.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{file.relative_to(built[0])}: {link}"
            assert not parts.fragment or unquote(parts.fragment) in pages[target].names, link
            checked += 1

    assert checked > 500


def test_no_page_loads_anything_from_elsewhere(built: tuple[Path, str], pages: dict[Path, Page]) -> None:
    """Scripts, styles, pictures and fonts are in the folder; a reader is told to nobody."""
    far = {load for page in pages.values() for load in page.loads if re.match(r"(\w+:)?//", load)}
    styles = "\n".join(file.read_text(encoding="utf-8") for file in built[0].rglob("*.css"))
    drawn = "\n".join(file.read_text(encoding="utf-8") for file in built[0].rglob("*.svg"))

    assert {load for load in far if not load.startswith("data:")} == set()
    assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", styles + drawn) == []
    assert re.findall(r"\bhref=['\"]https?:[^'\"]*", drawn) == []


def test_the_reference_has_every_public_name(pages: dict[Path, Page]) -> None:
    """What `__all__` offers is described, from its docstring."""
    import ibidem
    import langchain_ibidem
    import llama_index_ibidem

    described = {
        name.rpartition(".")[2]
        for file, page in pages.items()
        if file.parent.name.startswith("reference")
        for name in page.names
    }

    for package in (ibidem, langchain_ibidem, llama_index_ibidem):
        assert set(package.__all__) - described == set(), package.__name__
