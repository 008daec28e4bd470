"""The study page's sign-in: a cookie that opens pages alone, forms that their session alone can send."""

from __future__ import annotations

import re
from dataclasses import replace
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import Engine, text

from coordinator.access.paths import is_open, is_page, safe_next
from coordinator.app import create_app
from coordinator.pages.headers import CONTENT_SECURITY_POLICY
from coordinator.runtime import runtime_of
from coordinator.settings import CoordinatorSettings
from services.contracts import TokenScope
from tests.harness.served_app import ADMIN_TOKEN, WORKER_TOKEN, bearer, make_token, served

HTML = {"Accept": "text/html"}
COOKIE = "foldwise-session"
ACTIONS = ("start", "pause", "resume", "stop", "workers", "enqueue")


@pytest.fixture
def study(client: httpx.Client) -> str:
    spec = {
        "name": "s",
        "cache": "tiny",
        "trials": 5,
        "space": {"clahe": [True, False], "dropout": {"low": 0.0, "high": 0.5}},
        "training": {"frames": 2, "frame_size": 16},
    }
    client.post("/api/v1/studies", headers=bearer(ADMIN_TOKEN), json=spec).raise_for_status()
    return "/studies/s"


def sign_in(client: httpx.Client, token: str, **headers: str) -> httpx.Response:
    client.cookies.clear()
    return client.post("/sign-in", data={"token": token, "next": "/studies/s"}, headers={**HTML, **headers})


def form_token(client: httpx.Client, path: str = "/") -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', client.get(path, headers=HTML).text)
    assert found is not None
    return found.group(1)


def state(client: httpx.Client) -> Any:
    return client.get("/api/v1/studies/s", headers=bearer(ADMIN_TOKEN)).json()["state"]


# --- Sign-in ----------------------------------------------------------------------------------------------


def test_without_a_session_a_browser_is_led_to_the_form_and_back(client: httpx.Client, study: str) -> None:
    led = client.get(study, headers=HTML)
    assert (led.status_code, led.headers["location"]) == (303, "/sign-in?next=/studies/s")
    form = client.get(led.headers["location"], headers=HTML)
    assert 'name="next" value="/studies/s"' in form.text
    answer = sign_in(client, make_token(client, TokenScope.READ).token)
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/s")
    assert client.get(study, headers=HTML).status_code == 200
    # A program gets what a program can read.
    client.cookies.clear()
    refused = client.get(study)
    assert (refused.status_code, refused.json()["type"]) == (401, "urn:foldwise:token-refused")


def test_the_cookie_is_closed_to_scripts_and_other_sites_and_is_no_token(client: httpx.Client) -> None:
    token = make_token(client, TokenScope.READ).token
    plain = SimpleCookie(sign_in(client, token).headers["set-cookie"])[COOKIE]
    assert (plain["httponly"], plain["samesite"], plain["path"], plain["secure"]) == (True, "strict", "/", "")
    assert int(plain["max-age"]) <= 12 * 3600
    assert plain.value not in token
    assert token not in plain.value
    behind_tls = sign_in(client, token, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    secure = SimpleCookie(behind_tls)[f"__Host-{COOKIE}"]
    assert (secure["secure"], secure["path"], secure["domain"]) == (True, "/", "")


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong", 401), (WORKER_TOKEN, 403)])
def test_what_may_not_read_cannot_sign_in(shared_client: httpx.Client, token: str, status: int) -> None:
    answer = sign_in(shared_client, token)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert "set-cookie" not in answer.headers


def test_a_session_ends_with_sign_out_with_its_token_and_with_its_time(
    client: httpx.Client, app: FastAPI, engine: Engine
) -> None:
    token = make_token(client, TokenScope.READ)

    def session() -> str:
        sign_in(client, token.token)
        return client.cookies[COOKIE]

    def opens(secret: str) -> bool:
        client.cookies.clear()
        return client.get("/session", headers={"Cookie": f"{COOKIE}={secret}"}).status_code == 204

    first = session()
    assert opens(first)
    client.cookies.set(COOKIE, first)
    out = client.post("/sign-out", data={"form_token": form_token(client)})
    assert out.status_code == 303
    assert "foldwise-session=" in out.headers["set-cookie"]
    assert not opens(first), "a copy of the cookie would still open pages"

    second = session()
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.sessions SET expires_at = clock_timestamp()"))
    assert not opens(second)

    third = session()
    assert opens(third)
    client.delete(f"/api/v1/tokens/{token.id}", headers=bearer(ADMIN_TOKEN)).raise_for_status()
    assert not opens(third)

    sign_in(client, ADMIN_TOKEN)
    fourth = client.cookies[COOKIE]
    assert opens(fourth)
    settings = replace(runtime_of(app).settings, admin_token="another-token-of-this-test")
    with served(create_app(settings)) as changed:
        assert changed.get("/session", headers={"Cookie": f"{COOKIE}={fourth}"}).status_code == 401
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT string_agg(s::text, ' ') FROM foldwise.sessions s")).scalar_one()
    assert not any(secret in kept for secret in (first, second, third, fourth, token.token, ADMIN_TOKEN))


def test_session_and_token_never_pass_for_each_other(settings: CoordinatorSettings) -> None:
    # Both are remembered here.
    with served(create_app(replace(settings, token_seconds=60))) as client:
        token = make_token(client, TokenScope.ADMIN).token
        sign_in(client, token)
        secret = client.cookies[COOKIE]
        assert client.get("/").status_code == 200
        assert client.get("/api/v1/studies").status_code == 401, "the cookie opens pages alone"
        client.cookies.clear()
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 200
        assert client.get("/api/v1/studies", headers=bearer(secret)).status_code == 401
        assert client.get("/", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


@pytest.mark.parametrize(
    "elsewhere",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "/api/v1/studies", "javascript:1", ""],
)
def test_nobody_is_led_to_another_site(shared_client: httpx.Client, elsewhere: str) -> None:
    assert safe_next(elsewhere) == "/"
    answer = shared_client.post("/sign-in", data={"token": ADMIN_TOKEN, "next": elsewhere}, headers=HTML)
    assert answer.headers["location"] == "/"
    assert 'name="next" value="/"' in shared_client.get("/sign-in", params={"next": elsewhere}).text


# --- Forms ------------------------------------------------------------------------------------------------


def test_an_action_needs_a_form_of_its_own_session(client: httpx.Client, study: str) -> None:
    write = make_token(client, TokenScope.WRITE)
    sign_in(client, write.token)
    other = form_token(client)
    sign_in(client, write.token)
    for fields in ({}, {"form_token": ""}, {"form_token": other}, {"form_token": "é"}):
        for action in ACTIONS:
            answer = client.post(f"{study}/{action}", data=fields, headers=HTML)
            assert (answer.status_code, state(client)) == (403, "running")
            assert "nothing was done" in answer.text
    own = form_token(client)
    done = client.post(f"{study}/pause", data={"form_token": own}, headers=HTML)
    assert (done.status_code, done.headers["location"], state(client)) == (303, study, "paused")
    client.post(f"{study}/resume", data={"form_token": own})
    assert state(client) == "running"


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}],
)
def test_what_another_site_sends_is_refused(client: httpx.Client, study: str, headers: dict[str, str]) -> None:
    token = make_token(client, TokenScope.WRITE).token
    assert sign_in(client, token, **headers).status_code == 403
    assert COOKIE not in client.cookies, "another site could sign its visitors in as somebody else"
    sign_in(client, token)
    fields = {"form_token": form_token(client)}
    assert client.post(f"{study}/stop", data=fields, headers=headers).status_code == 403
    assert state(client) == "running"
    own = {"Sec-Fetch-Site": "same-origin", "Origin": str(client.base_url).rstrip("/")}
    assert client.post(f"{study}/stop", data=fields, headers=own).status_code == 303
    assert state(client) == "stopped"


def test_actions_are_shown_and_open_to_the_scope_write_alone(client: httpx.Client, study: str) -> None:
    sign_in(client, make_token(client, TokenScope.READ).token)
    page = client.get(study, headers=HTML).text
    assert f'action="{study}' not in page
    fields = {"form_token": form_token(client)}
    for action in ACTIONS:
        refused = client.post(f"{study}/{action}", data=fields, headers=HTML)
        assert (refused.status_code, state(client)) == (403, "running")
        assert "scope write" in refused.text
    sign_in(client, make_token(client, TokenScope.WRITE).token)
    page = client.get(study, headers=HTML).text
    assert all(f'action="{study}/{action}"' in page for action in ("pause", "stop", "workers", "enqueue"))


def test_a_configuration_is_enqueued_by_the_place_of_its_options(
    client: httpx.Client, engine: Engine, study: str
) -> None:
    sign_in(client, make_token(client, TokenScope.WRITE).token)
    fields = {"form_token": form_token(client), "clahe": "1", "dropout": "0.25"}
    assert client.post(f"{study}/enqueue", data=fields).status_code == 303
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT parameters FROM foldwise.enqueued")).scalars().all()
    assert stored == [{"clahe": False, "dropout": 0.25}]
    for wrong, names in (
        ({"clahe": "2"}, "clahe"),
        ({"clahe": "x"}, "clahe"),
        ({"dropout": "0.7"}, "dropout"),
        ({"dropout": "nan"}, "dropout"),
        ({"dropout": ""}, "dropout"),
    ):
        refused = client.post(f"{study}/enqueue", data={**fields, **wrong}, headers=HTML)
        assert (refused.status_code, names in refused.text) == (422, True)
    assert client.post(f"{study}/workers", data={**fields, "workers": "3"}).status_code == 303
    view = client.get("/api/v1/studies/s", headers=bearer(ADMIN_TOKEN)).json()
    assert view["spec"]["workers"] == 3
    assert client.post(f"{study}/workers", data={**fields, "workers": "-1"}).status_code == 422
    assert client.post(f"{study}/pause", content=b"\xff\xfe", headers=HTML).status_code == 422
    assert client.post(f"{study}/pause", content=b"a=b&" * 20_000).status_code == 413


# --- Every route ------------------------------------------------------------------------------------------


def test_every_page_is_walked_with_sessions_and_keeps_to_the_policy(
    client: httpx.Client, app: FastAPI, study: str
) -> None:
    pages = [
        (method, (route.path or "").replace("{name}", "s").replace("{number}", "0").replace("{index}", "0"))
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods or ())
        if is_page(route.path or "") or is_open(route.path or "")
    ]
    assert len(pages) > 15
    secrets: dict[TokenScope | None, str] = {None: "x" * 43}
    for scope in (TokenScope.READ, TokenScope.WRITE, TokenScope.ADMIN):
        sign_in(client, make_token(client, scope).token)
        secrets[scope] = client.cookies[COOKIE]
    client.cookies.clear()
    for method, path in pages:
        for who, secret in secrets.items():
            headers = {**HTML, "Cookie": f"{COOKIE}={secret}"}
            with client.stream(method, path, headers=headers) as answer:
                where = f"{method} {path} as {who}: {answer.status_code}"
                assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY, where
                assert answer.headers["x-content-type-options"] == "nosniff", where
                assert "cache-control" in answer.headers, where
                if is_open(path):
                    continue
                if who is None:
                    assert answer.status_code == (303 if method == "GET" else 401), where
                    continue
                # No form's token: a session alone changes nothing.
                allowed = {200, 204, 404} if method == "GET" else {403}
                assert answer.status_code in allowed, where


def test_no_page_needs_what_the_policy_forbids(client: httpx.Client, study: str) -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    sign_in(client, make_token(client, TokenScope.WRITE).token)
    for path in (
        "/",
        study,
        f"{study}/trials",
        f"{study}/parameters",
        f"{study}/panels",
        "/sign-in",
        "/studies/no",
    ):
        page = client.get(path, headers=HTML).text
        assert not re.search(
            r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=\"/static/)|javascript:", page
        ), path
        assert not re.search(r"(?:src|href|action)=\"(?!/|#|\?)", page), path
    for name in ("page.css", "live.js", "heat_map.js", "points.js", "icon.svg"):
        file = client.get(f"/static/{name}")
        assert (file.status_code, file.headers["cache-control"]) == (200, "no-cache")
        assert not re.search(r"https?://(?!www\.w3\.org/)", file.text), name
    for outside in ("/static/../auth.py", "/static/%2e%2e/auth.py", "/static/nothing.js"):
        assert client.get(outside).status_code in {401, 404}


def test_what_a_study_is_named_or_says_is_text_on_its_page(
    client: httpx.Client, study: str, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.studies SET reason = '<script>alert(1)</script>'"))
        connection.execute(text("""UPDATE foldwise.studies SET classes = '["<b>", "\\"x"]'"""))
    sign_in(client, make_token(client, TokenScope.READ).token)
    page = client.get(study, headers=HTML).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page


def test_an_error_is_a_page_to_a_person_and_a_problem_to_a_program(client: httpx.Client) -> None:
    sign_in(client, make_token(client, TokenScope.READ).token)
    person, program = client.get("/studies/no", headers=HTML), client.get("/studies/no")
    assert (person.status_code, program.status_code) == (404, 404)
    assert person.headers["content-type"].startswith("text/html")
    assert "there is no study" in person.text
    assert program.headers["content-type"] == "application/problem+json"
