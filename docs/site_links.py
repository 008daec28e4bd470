"""Hooks of mkdocs.yml: source paths start at the root of the project, so links out of docs/ work in the site.

docs/kubernetes.md links to `../helm/foldwise/README.md`, and README.md to `docs/kubernetes.md`. MkDocs knows
only files below docs/, by their path there. These hooks give each file its path from the project's root and add
what pages link to outside of docs/: a document becomes a page, a folder gets a page that lists its files, any
other file is copied. A link to a path that does not exist stays as it is, and MkDocs warns about it.

The project's root is the folder of mkdocs.yml.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

HOME = "README.md"
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")

# Inline links and images, and the definitions of links: what precedes the target, the target.
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]:\s+)([^)\s]+)", re.MULTILINE)
_TABLE_ROW = re.compile(r"^\|.*", re.MULTILINE)
_CODE = re.compile(r"`[^`]+`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the section of the project's root documents to the navigation, and watch them in `mkdocs serve`."""
    root = _root(config)
    present = [page for page in PROJECT_PAGES if (root / page).is_file()]
    config.nav = [*(config.nav or ()), {"Project": present}]
    config.watch = [*config.watch, *(str(root / page) for page in (HOME, *present))]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of docs/ by their paths in the project, the root documents, and all that these link to."""
    site = Files([])
    for file in files:
        if file.src_dir != config.docs_dir:
            site.append(file)
        elif file.inclusion is not InclusionLevel.EXCLUDED:
            site.append(_project_file(f"docs/{file.src_uri}", config, destination=file.dest_uri))
    site.append(_project_file(HOME, config, destination="index.html"))
    for name in PROJECT_PAGES:
        if (_root(config) / name).is_file():
            # In a folder, because a file system may not distinguish SECURITY.html from docs/security.md's page.
            destination = f"project/{Path(name).stem.lower()}.html"
            site.append(_project_file(name, config, destination=destination))
    _add_linked(site, config)
    return site


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to folders at the folder's page, and write code in tables as Python-Markdown reads it."""
    if page.file.src_uri == HOME:
        # Its sidebar would have one entry.
        page.meta["hide"] = ["navigation"]

    def to_page(link: re.Match[str]) -> str:
        path = _path_in_project(page.file, link[2], config)
        if path is None or not (_root(config) / path).is_dir():
            return link[0]
        return link[1] + posixpath.relpath(f"{path}/README.md", posixpath.dirname(page.file.src_uri) or ".")

    # Code hosts need `a\|b` for a bar in a table's code; Python-Markdown would show the backslash.
    markdown = _TABLE_ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), markdown)
    return _LINK.sub(to_page, markdown)


def _add_linked(site: Files, config: MkDocsConfig) -> None:
    """Add what the pages link to, and what the added pages link to."""
    unread = list(site.documentation_pages())
    while unread:
        page = unread.pop()
        for path in _linked_paths(page, config):
            source = f"{path}/README.md" if (_root(config) / path).is_dir() else path
            if site.get_file_from_path(source) is not None:
                continue
            if (_root(config) / source).is_file():
                added = _project_file(source, config, inclusion=InclusionLevel.NOT_IN_NAV)
            else:
                added = _folder_page(path, site, config)
            site.append(added)
            if added.is_documentation_page():
                unread.append(added)


def _folder_page(path: str, site: Files, config: MkDocsConfig) -> File:
    """A page that links to each file directly in a folder."""
    files = (_root(config) / path).iterdir()
    names = sorted(file.name for file in files if file.is_file() and file.name[0] != ".")
    if path.split("/", maxsplit=1)[0] == "docs":
        # exclude_docs decides what of docs/ is published.
        names = [name for name in names if site.get_file_from_path(f"{path}/{name}")]
    content = "\n".join([f"# Files of `{path}`\n", *(f"- [{name}]({name})" for name in names)])
    return File.generated(config, f"{path}/README.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _linked_paths(page: File, config: MkDocsConfig) -> Iterator[str]:
    for link in _LINK.finditer(page.content_string):
        if path := _path_in_project(page, link[2], config):
            yield path


def _path_in_project(page: File, link: str, config: MkDocsConfig) -> str | None:
    """What a page's relative link leads to, as a path from the project's root; None if that does not exist."""
    url = urlsplit(link)
    if url.scheme or url.netloc or not url.path or url.path.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), unquote(url.path)))
    return path if not path.startswith("..") and (_root(config) / path).exists() else None


def _project_file(
    path: str,
    config: MkDocsConfig,
    *,
    destination: str | None = None,
    inclusion: InclusionLevel = InclusionLevel.UNDEFINED,
) -> File:
    return File(
        path,
        str(_root(config)),
        config.site_dir,
        config.use_directory_urls,
        dest_uri=destination,
        inclusion=inclusion,
    )


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent
