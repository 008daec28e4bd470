"""What Prometheus is told: the database's counts, this process's requests, and that the docs name all of it."""

from __future__ import annotations

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import sessionmaker

from coordinator.app import create_app
from coordinator.metrics import ServiceCollector
from coordinator.store.database import connect
from tests.harness.coordinator_harness import Harness, wait_until
from tests.harness.served_app import bearer, served

Labels = frozenset[tuple[str, str]]
REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


def scrape(client: httpx.Client, token: str) -> dict[tuple[str, Labels], float]:
    answer = client.get("/metrics", headers=bearer(token))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, Labels]:
    return name, frozenset(labels.items())


def test_the_databases_counts_are_told_whichever_coordinator_is_asked(harness: Harness) -> None:
    # Two trials of equal parameters: the second reuses the first's five folds. Of the other study a fold is
    # run, one lapses and is held again.
    harness.create(name="equal", space={"clahe": [True]}, trials=2)
    assignment = harness.claim()
    while assignment is not None:
        assignment = harness.report(assignment).next
    harness.create(name="other", space={"clahe": [True, False]}, trials=3)
    following = harness.report(harness.must_claim()).next
    assert following is not None
    harness.expire(following)
    harness.must_claim("w2")
    settings = harness.settings
    apps = [create_app(settings) for _ in range(2)]
    expected = {
        key("foldwise_folds_counted", origin="run"): 6,
        key("foldwise_folds_counted", origin="reused"): 5,
        key("foldwise_leases_ended", outcome="done"): 6,
        key("foldwise_leases_ended", outcome="lapsed"): 1,
        key("foldwise_leases_ended", outcome="trial"): 0,
        key("foldwise_leases_live"): 1,
        key("foldwise_trials", study="other", state="running"): 1,
        key("foldwise_trials", study="other", state="ready"): 2,
        key("foldwise_open_trials"): 3,
        key("foldwise_workers"): 2,
        key("foldwise_outbox_length"): 0,
        key("foldwise_database_up"): 1,
        key("foldwise_lease_overdue_seconds"): 0,
        key("foldwise_studies_failing"): 0,
    }
    with served(apps[0]) as one, served(apps[1]) as two:
        admin = settings.admin_token
        # What was changed without a leader is projected, and asked for, by the one that is elected now.
        wait_until(lambda: expected.items() <= scrape(one, admin).items())
        assert expected.items() <= scrape(two, admin).items()
        leaders = key("foldwise_leader")
        wait_until(lambda: scrape(one, admin)[leaders] + scrape(two, admin)[leaders] == 1)
        in_use = scrape(one, admin)[key("foldwise_database_connections_in_use")]
        assert 0 <= in_use <= 16
        assert scrape(one, admin)[key("process_resident_memory_bytes")] > 1e7


def test_requests_are_counted_by_the_routes_template_and_never_by_what_a_client_writes(
    harness: Harness,
) -> None:
    settings = harness.settings
    admin = bearer(settings.admin_token)
    with served(create_app(settings)) as client:
        for name in ("a", "b"):
            assert client.get(f"/api/v1/studies/{name}", headers=admin).status_code == 404
        client.get("/api/v1/studies/c")
        client.request("PROPFIND", "/folder", headers=admin)
        token = client.post(
            "/api/v1/tokens", headers=admin, json={"name": "prometheus", "scope": "read"}
        ).json()["token"]
        told = scrape(client, token)
    shown = {"method": "GET", "route": "/api/v1/studies/{name}"}
    assert told[key("foldwise_http_requests_total", **shown, status="404")] == 2
    assert told[key("foldwise_http_request_seconds_count", **shown)] == 2
    assert told[key("foldwise_http_requests_total", method="GET", route="none", status="401")] == 1
    assert told[key("foldwise_http_requests_total", method="other", route="none", status="404")] == 1
    assert told[key("foldwise_http_requests_total", method="POST", route="/api/v1/tokens", status="201")] == 1
    assert not any("/studies/a" in value for _, labels in told for _, value in labels)


def test_without_the_database_the_rest_is_told(harness: Harness) -> None:
    gone = connect("postgresql://nobody@127.0.0.1:9/nothing")
    collector = ServiceCollector(sessionmaker(gone), harness.leader, connections=lambda: 3)
    told = {sample.name: sample.value for family in collector.collect() for sample in family.samples}
    assert told == {
        "foldwise_leader": 0,
        "foldwise_leader_round_seconds": 0,
        "foldwise_database_connections_in_use": 3,
        "foldwise_database_up": 0,
    }


def test_the_reference_names_every_metric(harness: Harness) -> None:
    with served(create_app(harness.settings)) as client:
        client.get("/livez")
        answer = client.get("/metrics", headers=bearer(harness.settings.admin_token))
    documented = REFERENCE.read_text()
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert len(families) > 10
    for name in families:
        if name.startswith("foldwise_"):
            assert f"`{name}" in documented, name
