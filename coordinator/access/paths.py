"""Which paths are pages: only pages accept a session cookie and show errors as HTML."""

from __future__ import annotations

from urllib.parse import quote

from starlette.datastructures import Headers

SIGN_IN = "/sign-in"
STATIC = "/static"

_PAGES = ("/", "/session", "/sign-out")
_STUDIES = "/studies"


def is_page(path: str) -> bool:
    """Whether this path accepts a session cookie."""
    return path in _PAGES or path == _STUDIES or path.startswith(f"{_STUDIES}/")


def is_open(path: str) -> bool:
    """Whether this path needs no token: the sign-in form and the static files."""
    return path == SIGN_IN or path.startswith(f"{STATIC}/")


def wants_html(path: str, headers: Headers) -> bool:
    """Whether the client is a browser that asks for a page."""
    return (is_page(path) or is_open(path)) and "text/html" in headers.get("accept", "")


def sign_in_path(wanted: str) -> str:
    """The sign-in form's path, which leads on to the wanted page."""
    return SIGN_IN if wanted == "/" else f"{SIGN_IN}?next={quote(wanted, safe='/')}"


def safe_next(wanted: str) -> str:
    """The wanted path if it is a page of ours, else `/`: a sign-in never leads to another site."""
    return wanted if is_page(wanted) and "\\" not in wanted else "/"
