"""Events: none skipped whatever the order of ends, told by every replica, kept within bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from coordinator import events
from coordinator.events import BEGINNING, Cursor, events_after, newest_cursor, parse_cursor, publish
from coordinator.studies import life
from services.contracts import Event, EventKind
from services.errors import InvalidInput
from tests.harness.coordinator_harness import Harness
from tests.harness.served_app import live_coordinator


def events_of(harness: Harness, cursor: Cursor = BEGINNING) -> list[Event]:
    with harness.sessions() as session:
        return events_after(session, cursor)


def kinds(found: list[Event]) -> list[tuple[str, Any]]:
    return [(event.kind.value, event.data.get("state", event.data.get("fold"))) for event in found]


def test_what_happens_to_a_study_is_told_in_order(harness: Harness) -> None:
    harness.create(trials=1)
    assignment = harness.must_claim()
    following = harness.report(assignment).next
    while following is not None:
        following = harness.report(following).next
    found = events_of(harness)
    assert kinds(found) == [
        ("study_moved", "running"),
        *(("fold_accepted", fold) for fold in range(5)),
        ("trial_ended", "complete"),
        ("study_moved", "complete"),
    ]
    assert {event.study for event in found} == {"s"}
    assert found[1].data == {
        "trial": 0,
        "fold": 0,
        "correct": 2,
        "clips": 2,
        "trial_accuracy": 1.0,
        "reused": False,
    }
    assert events_of(harness, parse_cursor(found[4].id)) == found[5:]
    with harness.sessions() as session:
        assert newest_cursor(session) == parse_cursor(found[-1].id)


def test_a_lower_id_that_becomes_visible_later_is_not_skipped(harness: Harness) -> None:
    with harness.sessions() as early, harness.sessions() as late:
        early.execute(text("SELECT pg_current_xact_id()"))
        publish(late, 1, EventKind.STUDY_CHANGED, first="by id")
        publish(early, 1, EventKind.STUDY_CHANGED, second="by id")
        early.commit()
        seen = events_of(harness)
        assert [list(event.data) for event in seen] == [["second"]]
        late.commit()
        seen += events_of(harness, parse_cursor(seen[-1].id))
    assert [list(event.data) for event in seen] == [["second"], ["first"]]
    ids = [parse_cursor(event.id).id for event in seen]
    assert ids[0] > ids[1], "by id alone the second would have hidden the first"


def test_a_transaction_that_ends_late_holds_newer_events_back(harness: Harness) -> None:
    with harness.sessions() as slow, harness.sessions() as quick:
        publish(slow, 1, EventKind.STUDY_CHANGED, who="slow")
        publish(quick, 1, EventKind.STUDY_CHANGED, who="quick")
        quick.commit()
        assert events_of(harness) == []
        with harness.sessions() as session:
            assert newest_cursor(session) == BEGINNING
        slow.commit()
    assert [event.data["who"] for event in events_of(harness)] == ["slow", "quick"]


def test_what_is_rolled_back_was_not(harness: Harness) -> None:
    with harness.sessions() as session:
        publish(session, 1, EventKind.STUDY_CHANGED)
        session.rollback()
    assert events_of(harness) == []


def test_old_events_and_too_many_are_dropped(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT_EVENTS", 3)
    for number in range(6):
        with harness.sessions.begin() as session:
            publish(session, 1, EventKind.STUDY_CHANGED, number=number)
    with harness.engine.begin() as connection:
        connection.execute(text("UPDATE foldwise.events SET at = at - interval '31 days' WHERE id = 5"))
    harness.leader.round()
    assert [event.data["number"] for event in events_of(harness)] == [2, 3, 5]


def test_a_place_of_another_database_counts_as_the_beginning(harness: Harness) -> None:
    with harness.sessions.begin() as session:
        publish(session, 1, EventKind.STUDY_CHANGED)
    assert len(events_of(harness, Cursor(2**60, 1))) == 1


@pytest.mark.parametrize("wrong", ["", "1", "-", "1-", "a-b", "1-2-3", f"{2**63}-0", "\u0661-1"])
def test_what_is_no_place_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="not the id of an event"):
        parse_cursor(wrong)


def sent(client: httpx.Client, path: str, **given: Any) -> Iterator[dict[str, str]]:
    """Server-sent events as a browser reads them, as long as the stream is read."""
    with client.stream("GET", f"/api/v1{path}", **given) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif fields:
                yield fields
                fields = {}


def test_a_stream_tells_what_happens_and_goes_on_where_it_was_cut(harness: Harness) -> None:
    harness.create(trials=1)
    with live_coordinator(harness.settings) as client, live_coordinator(harness.settings) as replica:
        all_of_them = sent(client, "/events", params={"after": "0-0"})
        first = next(all_of_them)
        assert first["event"] == "study_moved"
        content = json.loads(first["data"])
        assert (content["id"], content["study"], content["kind"]) == (first["id"], "s", "study_moved")
        harness.report(harness.must_claim())
        second = next(all_of_them)
        assert (second["event"], json.loads(second["data"])["data"]["fold"]) == ("fold_accepted", 0)
        all_of_them.close()  # type: ignore[attr-defined]

        again = sent(replica, "/studies/s/events", headers={"Last-Event-ID": first["id"]})
        assert next(again) == second
        with harness.sessions.begin() as session:
            life.pause(session, "s")
        assert json.loads(next(again)["data"])["data"] == {"state": "paused", "reason": None}
        again.close()  # type: ignore[attr-defined]


def test_a_quiet_stream_carries_comments(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    with live_coordinator(harness.settings) as client, client.stream("GET", "/api/v1/events") as response:
        assert next(response.iter_lines()) == ": ping"


def test_the_stream_of_a_study_is_its_own_and_ends_with_it(harness: Harness) -> None:
    harness.create(name="other")
    harness.create(start=False)
    with live_coordinator(harness.settings) as client:
        stream = sent(client, "/studies/s/events", params={"after": "0-0"})
        assert json.loads(next(stream)["data"])["data"]["state"] == "draft"
        assert client.delete("/api/v1/studies/s", params={"confirm": "s"}).status_code == 204
        last = json.loads(next(stream)["data"])
        assert (last["kind"], last["study"]) == ("study_deleted", "s")
        assert list(stream) == []
        assert client.get("/api/v1/studies/s/events").status_code == 404
        refused = client.get("/api/v1/events", headers={"Last-Event-ID": "yesterday"})
        assert (refused.status_code, refused.json()["field"]) == (422, "after")
