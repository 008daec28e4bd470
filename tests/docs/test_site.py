"""The documentation's site loads nothing from other hosts, and its links and its search lead somewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.harness.site_build import PROJECT, build_site

OTHER_HOST = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
CSS_LOADS = re.compile(r"(?:@import\s*|url\(\s*)[\"']?\s*((?:https?:)?//[^\"')\s]*)", re.IGNORECASE)
LOADING_ATTRIBUTES = ("src", "srcset", "data", "poster")
# What makes the theme's scripts call another host: diagrams, facts about a repository, comments, analytics.
CALLING = re.compile(r"\bmermaid\b|md-source|giscus|analytics")


@dataclass
class Elements(HTMLParser):
    """What a page loads, links to and defines."""

    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    calling: list[str] = field(default_factory=list)
    settings: str = ""
    _text_of: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.loads += [given[name] for name in LOADING_ATTRIBUTES if name in given]
        self.loads += CSS_LOADS.findall(given.get("style", ""))
        if tag in ("link", "use", "image"):
            self.loads += [given[name] for name in ("href", "xlink:href") if name in given]
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.anchors.add(given.get("id", ""))
        if found := CALLING.search(f"{given.get('class', '')} {given.get('data-md-component', '')}"):
            self.calling.append(found[0])
        self._text_of = "settings" if given.get("id") == "__config" else tag

    def handle_endtag(self, tag: str) -> None:
        self._text_of = ""

    def handle_data(self, data: str) -> None:
        if self._text_of == "style":
            self.loads += CSS_LOADS.findall(data)
        elif self._text_of == "settings":
            self.settings += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("documentation") / "site"
    done = build_site(built)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Elements]:
    read = {page: Elements() for page in sorted(site.rglob("*.html"))}
    for page, elements in read.items():
        elements.feed(page.read_text(encoding="utf-8"))
        elements.close()
    assert len(read) > 30
    return read


def test_no_page_loads_or_calls_another_host(site: Path, pages: dict[Path, Elements]) -> None:
    for page, elements in pages.items():
        name = str(page.relative_to(site))
        assert elements.loads, name
        assert [url for url in elements.loads if OTHER_HOST.match(url)] == [], name
        assert elements.calling == [], name
        texts = list(strings(json.loads(elements.settings)))
        assert [text for text in texts if OTHER_HOST.match(text)] == [], name


def test_no_stylesheet_loads_from_another_host(site: Path) -> None:
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert CSS_LOADS.findall(sheet.read_text(encoding="utf-8")) == [], sheet.name


@pytest.mark.parametrize(
    "css",
    ["@import 'https://cdn.example/a.css'", "a { src: url(//fonts.example/x) }", '@import url("http://x.y")'],
)
def test_a_load_in_css_is_found(css: str) -> None:
    assert CSS_LOADS.findall(css)


def test_every_link_leads_to_a_file_and_an_anchor(site: Path, pages: dict[Path, Elements]) -> None:
    for page, elements in pages.items():
        # MkDocs cannot know at which path the page for missing pages is shown, so its links begin at the root.
        if page.name == "404.html":
            continue
        for link in elements.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, f"{page.relative_to(site)}: {link}"


def test_the_search_index_finds_a_phrase(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {
        entry["location"]
        for entry in index["docs"]
        if "fold order" in f"{entry['title']} {re.sub('<[^>]+>', '', entry['text'])}".lower()
    }
    assert found


def test_root_documents_are_pages_and_programs_are_not_published(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert (PROJECT / "README.md").read_text(encoding="utf-8").splitlines()[0] == "# foldwise"
    assert '<h1 id="foldwise">' in home
    for page in (
        "project/changelog.html",
        "project/security.html",
        "security.html",
        "helm/foldwise/index.html",
    ):
        assert (site / page).is_file(), page
    assert list(site.rglob("make_rest.py")) == list(site.rglob("site_links.py")) == []


SMALL = """\
INHERIT: {real}
docs_dir: docs
hooks: [{hook}]
nav: [README.md, docs/page.md]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project of two pages with the real settings and hook; what `docs/page.md` says is up to the test."""
    for folder in ("docs", "worker", "examples"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs" / "program.py").write_text("pass\n")
    (tmp_path / "README.md").write_text("# Home\n\n[page](docs/page.md)\n")
    (tmp_path / "SECURITY.md").write_text("# Security policy\n")
    (tmp_path / "worker" / "loop.py").write_text("pass\n")
    (tmp_path / "examples" / "a.yaml").write_text("{}\n")
    for name in ("images/logo.svg", "images/icon.svg", "site.css"):
        (tmp_path / "docs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "docs" / name).write_bytes((PROJECT / "docs" / name).read_bytes())
    hook = PROJECT / "docs" / "site_links.py"
    (tmp_path / "mkdocs.yml").write_text(SMALL.format(real=PROJECT / "mkdocs.yml", hook=hook))
    return tmp_path


def test_links_out_of_docs_lead_to_pages_copies_and_lists(small: Path) -> None:
    (small / "docs" / "page.md").write_text(
        "# Page\n\n[code](../worker/loop.py) [folder](../examples/) [this](.) [policy](../SECURITY.md)\n\n"
        "| a |\n|---|\n| `b\\|c` |\n"
    )
    done = build_site(small / "site", small / "mkdocs.yml")
    assert done.returncode == 0, done.stderr
    page = (small / "site" / "page.html").read_text()
    for link in ("worker/loop.py", "examples/index.html", "docs/index.html", "project/security.html"):
        assert f'href="{link}"' in page
    assert "<code>b|c</code>" in page
    assert (small / "site" / "worker" / "loop.py").read_text() == "pass\n"
    assert 'href="a.yaml"' in (small / "site" / "examples" / "index.html").read_text()
    assert "program.py" not in (small / "site" / "docs" / "index.html").read_text()


def test_broken_links_and_pages_outside_the_navigation_fail_the_build(small: Path) -> None:
    complaints = {
        "nowhere.md": "target 'docs/nowhere.md' is not found",
        "../worker/gone.py": "target 'worker/gone.py' is not found",
        "../gone/": "unrecognized relative link '../gone/'",
        "../README.md#gone": "does not contain an anchor '#gone'",
        "#gone": "there is no such anchor on this page",
        "/page.md": "an absolute link '/page.md'",
    }
    (small / "docs" / "page.md").write_text(
        "# Page\n\n" + "\n".join(f"[a link]({link})" for link in complaints)
    )
    (small / "docs" / "other.md").write_text("# Other\n")
    done = build_site(small / "site", small / "mkdocs.yml")
    assert done.returncode != 0
    for complaint in (*complaints.values(), "docs/other.md"):
        assert complaint in done.stderr
    assert done.stderr.count("WARNING") == len(complaints) + 1


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
