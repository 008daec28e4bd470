"""Which paths are pages: those alone take a session's cookie, and answer errors as HTML."""

from __future__ import annotations

from urllib.parse import quote

from starlette.datastructures import Headers

SIGN_IN = "/sign-in"
STATIC = "/static"

_PAGES = ("/", "/session", "/sign-out")
_BELOW = "/studies"


def is_page(path: str) -> bool:
    """Whether a session's cookie counts here."""
    return path in _PAGES or path == _BELOW or path.startswith(f"{_BELOW}/")


def is_open(path: str) -> bool:
    """Whether it is shown to everybody: the form to sign in, and the files that come with this program."""
    return path == SIGN_IN or path.startswith(f"{STATIC}/")


def wants_html(path: str, headers: Headers) -> bool:
    """Whether a person looks at the answer in a browser."""
    return (is_page(path) or is_open(path)) and "text/html" in headers.get("accept", "")


def sign_in_path(wanted: str) -> str:
    """Where to sign in, and go on to the page that was wanted."""
    return SIGN_IN if wanted == "/" else f"{SIGN_IN}?next={quote(wanted, safe='/')}"


def safe_next(wanted: str) -> str:
    """Where to go on to: a page of ours, never another site."""
    return wanted if is_page(wanted) and "\\" not in wanted else "/"
