"""docs/rest.md says what the service says of itself."""

from __future__ import annotations

import re

from docs.make_rest import PAGE, description, page


def test_the_page_is_that_of_this_service() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(description()), "run `make rest`"


def test_every_call_and_every_object_is_in_it_and_no_link_is_dead() -> None:
    api = description()
    text = PAGE.read_text(encoding="utf-8")
    headings = set(re.findall(r"^### `?(.+?)`?$", text, re.MULTILINE))
    calls = {f"{method.upper()} {path}" for path, methods in api["paths"].items() for method in methods}
    assert headings == calls | set(api["components"]["schemas"])
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= {heading.lower() for heading in headings}
