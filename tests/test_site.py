"""The site that `make docs` makes: without a warning, whole, and by itself."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.pages import PATIENCE_S, ROOT

pytestmark = pytest.mark.timeout(PATIENCE_S + 20)

_LOADED = {"img": "src", "link": "href", "script": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, where it leads, and where in it one may be led."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if given.get(_LOADED.get(tag, "")):
            self.loads.append(given[_LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, made as `make docs` does; every warning is an error."""
    made = tmp_path_factory.mktemp("site")
    command: list[str | Path] = [
        sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going",
        "-c", ROOT / "docs", "-d", made / "cache", ROOT, made / "html",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return made / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page of the site."""
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_there_and_has_what_the_code_says(site: Path) -> None:
    for source in ROOT.glob("docs/**/*.md"):
        made = site / source.relative_to(ROOT).with_suffix(".html")
        assert "from the code:" not in made.read_text(encoding="utf-8"), made
    options = (site / "docs" / "reference" / "options.html").read_text(encoding="utf-8")
    assert "BULKFETCH_QUERY_CONCURRENCY" in options
    api = (site / "docs" / "reference" / "python.html").read_text(encoding="utf-8")
    assert 'id="bulkfetch.download_async"' in api


def test_every_link_inside_the_site_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            place = unquote(url.fragment)
            is_there = there.is_file() and (not place or place in pages[there].places)
            if not is_there:
                broken.append((path.name, link))
    assert not broken


def test_a_page_asks_nothing_of_any_network(site: Path, pages: dict[Path, Page]) -> None:
    asked = {(path.name, url) for path, page in pages.items() for url in page.loads if "//" in url}
    assert not {(name, url) for name, url in asked if not url.startswith("data:")}
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text, style
        assert "url(http" not in text.replace('"', "").replace("'", ""), style
