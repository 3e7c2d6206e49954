"""Metrics and the logs' ids: what there is to see of a service, its jobs and its requests."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import structlog
import yaml
from fastapi.testclient import TestClient
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from service_fakes import SPEC, add_job, attempts_of, job_of, problem
from service_world import World
from structlog.testing import capture_logs

from service.app import create_app
from service.controller import attempts, context, loop, starting
from service.controller_app import ControllerRefused, _metrics
from service.counters import exposition, registry_of
from service.db.database import Database
from service.db.tables import Attempt, Job, now
from service.embedded.processes import free_ports
from service.jobs import lifecycle
from service.jobs.lifecycle import Verb
from service.jobs.state import State
from service.observability import requests
from service.observability.collector import ServiceCollector
from trainer.protocol import names
from trainer.protocol.outcome import Outcome
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys

ROOT = Path(__file__).parents[3]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ROW = re.compile(r"^\| `(rcmae_\w+)` \|([^|]*)\|", re.MULTILINE)
QUERIED = re.compile(r"\b(rcmae_\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([^)]*)\)")

NEWEST = Newest(
    attempt=1,
    step=10,
    values={metric_keys.SAMPLES: 640.0, metric_keys.EPOCH: 0.5, metric_keys.LOSS: 0.7, metric_keys.IMAGES_PER_S: 64.0},
)

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(text: str) -> Values:
    samples = [sample for family in parse_text(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(values: Values, name: str, **labels: str) -> float | None:
    return values.get((name, frozenset(labels.items())))


Look = Callable[[], Values]


@pytest.fixture
def look(world: World) -> Look:
    """The metrics of a process in which the controller's loop runs, as they are now."""
    registry = registry_of(ServiceCollector(world.app_state, world.reconciler))
    return lambda: values_of(exposition(registry, "")[0].decode())


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    """What is logged, with the ids that are bound."""
    for module in (attempts, context, lifecycle, loop, requests, starting):
        monkeypatch.setattr(module, "log", structlog.get_logger())  # a cached logger cannot be captured
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


# --- what is measured -----------------------------------------------------------------------------------------------


def test_jobs_are_counted_by_state_and_the_longest_wait_is_told(world, look):
    world.add(state="queued", waiting_since=now() - timedelta(seconds=50))
    world.add(state="queued", waiting_since=now() - timedelta(hours=2))
    world.add(state="queued", waiting_since=now() - timedelta(days=9), deleted_at=now())
    world.add(state="failed", waiting_since=now() - timedelta(days=3))
    seen = look()
    assert value(seen, "rcmae_jobs", state="queued", kind="pretrain") == 2
    assert value(seen, "rcmae_jobs", state="failed", kind="pretrain") == 1
    assert value(seen, "rcmae_jobs", state="paused", kind="pretrain") == 0
    assert value(seen, "rcmae_oldest_waiting_seconds", state="queued") == pytest.approx(7200, abs=60)
    assert value(seen, "rcmae_oldest_waiting_seconds", state="recovering") == 0
    assert value(seen, "rcmae_database_up") == 1


def test_a_running_job_has_gauges_until_it_ends(world, look):
    job_id = world.running()
    run = world.mlflow.runs[f"run-{job_id}"]
    assert value(look(), "rcmae_job_loss", job_id=job_id) is None, "it has told nothing yet"
    run.tags[names.TAG_NEWEST] = NEWEST.model_dump_json()
    world.rounds()
    seen = look()
    assert value(seen, "rcmae_job_images_per_second", job_id=job_id) == 64
    assert value(seen, "rcmae_job_loss", job_id=job_id) == 0.7
    assert value(seen, "rcmae_job_epoch", job_id=job_id) == 0.5
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    assert not [labels for _, labels in look() if ("job_id", job_id) in labels]


@pytest.mark.both_databases
def test_changes_of_state_and_ends_of_attempts_are_counted_when_they_are_written(world, look):
    before = look()

    def more(name: str, **labels: str) -> float:
        return (value(look(), name, **labels) or 0) - (value(before, name, **labels) or 0)

    job_id = world.running()
    labels = {"from": "starting", "to": "running", "reason": "none"}
    assert more("rcmae_job_transitions_total", **labels) == 1
    with world.database.session() as session:
        session.get(Attempt, (job_id, 1)).gpus = 2
    world.end_attempt(job_id, Outcome(state="failed", reason="out_of_memory"), ray="FAILED")
    world.rounds()
    assert world.state(job_id) == "recovering"
    labels = {"from": "running", "to": "recovering", "reason": "out_of_memory"}
    assert more("rcmae_job_transitions_total", **labels) == 1
    assert more("rcmae_attempts_ended_total", state="failed", reason="out_of_memory") == 1
    (attempt,) = attempts_of(world.database, job_id)
    held = 2 * (attempt.ended_at - attempt.started_at).total_seconds()
    assert more("rcmae_gpu_seconds_total") == pytest.approx(held)


def test_a_change_that_is_rolled_back_is_not_counted(world, look):
    job_id, before = world.add(state="queued"), look()

    def fail() -> None:
        with world.database.session() as session:
            lifecycle.transition(session, session.get(Job, job_id), State.PAUSED, None, "Paused.", "alice")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    labels = {"from": "queued", "to": "paused", "reason": "none"}
    assert world.state(job_id) == "queued"
    assert value(look(), "rcmae_job_transitions_total", **labels) == value(
        before, "rcmae_job_transitions_total", **labels
    )


def test_the_loop_tells_how_it_gets_on(world, look):
    world.add()
    world.rounds()
    world.context.lease.finished_round()
    world.context.lease.tick()
    seen = look()
    assert value(seen, "rcmae_lease_held") == 1
    assert value(seen, "rcmae_reconcile_lag_seconds") >= 0
    assert 0 <= value(seen, "rcmae_controller_round_age_seconds") < 60
    assert [value(seen, "rcmae_dependency_away", part=part) for part in ("ray", "mlflow", "storage")] == [0, 0, 0]
    world.ray.reachable = False
    world.rounds()
    assert value(look(), "rcmae_dependency_away", part="ray") == 1
    world.context.lease.release()
    assert value(look(), "rcmae_lease_held") == 0


def test_a_process_without_the_loop_says_nothing_of_one(world):
    body, _ = exposition(registry_of(ServiceCollector(world.app_state, None)), "")
    shown = {name for name, _ in values_of(body.decode())}
    assert "rcmae_jobs" in shown
    assert not shown & {"rcmae_lease_held", "rcmae_reconcile_lag_seconds", "rcmae_dependency_away"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # Postgres plans by the size of the table
def test_counting_reads_an_index_and_no_job(database):
    add_job(database)
    counted = "SELECT state, kind, count(*), min(waiting_since) FROM job WHERE deleted_at IS NULL GROUP BY state, kind"
    with database.read() as session:
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {counted}").all()
    assert "COVERING INDEX ix_job_state_kind_deleted_at_waiting_since" in str(plan)


# --- /metrics -------------------------------------------------------------------------------------------------------


def metrics(client: TestClient) -> Values:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return values_of(answer.text)


def test_metrics_need_no_token_and_come_as_they_are_wanted(clients):
    plain = clients.anonymous.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert list(parse_text(plain.text))
    open_metrics = clients.anonymous.get("/metrics", headers={"Accept": OPENMETRICS})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert open_metrics.text.endswith("# EOF\n")
    assert {family.name for family in parse_openmetrics(open_metrics.text)} >= {"rcmae_jobs", "rcmae_job_transitions"}


def test_requests_are_timed_by_route_and_others_share_one_label(clients, database):
    job_id, before = add_job(database), metrics(clients.anonymous)
    for _ in range(3):
        assert clients.viewer.get(f"/v1/jobs/{job_id}").status_code == 200
    assert clients.anonymous.get(f"/v1/jobs/{job_id}").status_code == 401
    for number in range(4):
        assert clients.viewer.get(f"/v1/nothing-{number}").status_code == 404
    assert clients.viewer.request("BREW", "/v1/jobs").status_code == 405
    after = metrics(clients.anonymous)

    def more(route: str, status: str, method: str = "GET") -> float:
        labels = {"method": method, "route": route, "status": status}
        name = "rcmae_api_request_seconds_count"
        return (value(after, name, **labels) or 0) - (value(before, name, **labels) or 0)

    assert more("/v1/jobs/{job_id}", "2xx") == 3
    assert more("/v1/jobs/{job_id}", "4xx") == 1
    assert more("unmatched", "4xx") == 4
    assert more("/v1/jobs", "4xx", "other") == 1
    assert value(after, "rcmae_api_requests_in_progress") == 1, "this one"
    assert "nothing-0" not in str(after)


@pytest.mark.both_databases
def test_no_text_of_peoples_is_shown(clients, database):
    spec = SPEC | {"name": "canary-name", "labels": {"canary-label": "canary-value"}}
    add_job(database, "running", spec, owner="canary-owner", progress={"loss": 0.5})
    clients.viewer.get("/v1/jobs/canary-id?owner=canary-query", headers={"X-Request-ID": "canary-request"})
    shown = clients.anonymous.get("/metrics").text
    assert 'rcmae_jobs{kind="pretrain",state="running"} 1.0' in shown
    assert "canary" not in shown


@pytest.fixture
def lost(world: World) -> Iterator[World]:
    """A world whose database is away."""
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    world.app_state = replace(world.app_state, database=away)
    yield world
    away.close()


def test_without_the_database_the_rest_is_shown(lost):
    body, _ = exposition(registry_of(ServiceCollector(lost.app_state, lost.reconciler)), "")
    seen = values_of(body.decode())
    assert value(seen, "rcmae_database_up") == 0
    assert value(seen, "rcmae_lease_held") == 1
    assert "rcmae_jobs" not in {name for name, _ in seen}


def test_the_controller_answers_at_a_port_of_its_own(world):
    (port,) = free_ports(1)
    settings = world.app_state.settings.model_copy(update={"metrics_port": port})
    url = f"http://127.0.0.1:{port}/metrics"
    with _metrics(replace(world.app_state, settings=settings), world.reconciler):
        answer = httpx.get(url, headers={"Accept": OPENMETRICS}, trust_env=False)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert "rcmae_lease_held 1.0" in answer.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_a_controller_whose_port_is_taken_says_so(world):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = world.app_state.settings.model_copy(update={"metrics_port": port})
        with (
            pytest.raises(ControllerRefused, match=f"127.0.0.1:{port}: .*in use.* Change RCMAE_METRICS_PORT"),
            _metrics(replace(world.app_state, settings=settings), world.reconciler),
        ):
            pass


# --- ids in the logs ------------------------------------------------------------------------------------------------


def test_a_request_is_one_line(clients, logged, database):
    job_id = add_job(database)
    sent = {"X-Request-ID": "asked-7"}
    assert clients.viewer.get(f"/v1/jobs/{job_id}/events?cursor=none", headers=sent).status_code == 422
    (line,) = [line for line in logged if line["event"] == "request"]
    assert line.pop("duration_s") > 0
    assert line == {
        "event": "request", "log_level": "info", "method": "GET", "route": "/v1/jobs/{job_id}/events", "status": 422,
        "request_id": "asked-7", "owner": "viewer", "job_id": job_id,
    }  # fmt: skip


def test_what_machines_ask_all_the_time_is_logged_where_it_fails(clients, logged):
    assert clients.anonymous.get("/healthz").status_code == 200
    assert clients.anonymous.get("/metrics").status_code == 200
    assert not [line for line in logged if line["event"] == "request"]
    assert clients.anonymous.get("/readyz").status_code == 503
    assert [line["route"] for line in logged if line["event"] == "request"] == ["/readyz"]


def test_the_id_of_the_request_goes_with_the_job(api, world, logged):
    answer = api.post("/v1/jobs", json=SPEC, headers={"X-Request-ID": "asked-8"})
    assert answer.status_code == 201
    job_id = answer.json()["id"]
    world.rounds()
    (request,) = world.ray.requests
    assert request.request_id == "asked-8"
    world.run_attempt(job_id)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    told = [line for line in logged if line["event"] != "request"]
    assert {line["event"] for line in told} >= {"job_moved", "attempt_submitted", "attempt_ended"}
    assert {line["job_id"] for line in told} == {job_id}
    assert {line["attempt"] for line in told} == {1}
    assert {line["request_id"] for line in told} == {"asked-8"}
    assert [line["state"] for line in told if line["event"] == "job_moved"] == ["starting", "running", "succeeded"]


def test_a_command_is_logged_with_its_own_id(api, world, logged):
    job_id = api.post("/v1/jobs", json=SPEC, headers={"X-Request-ID": "asked-9"}).json()["id"]
    api.post(f"/v1/jobs/{job_id}/cancel", headers={"X-Request-ID": "asked-10"})
    (line,) = [line for line in logged if line["event"] == "job_moved"]
    assert (line["request_id"], line["job_id"], line["actor"]) == ("asked-10", job_id, "alice")
    assert (line["before"], line["state"], line["reason"]) == ("queued", "cancelled", "cancelled_by_user")
    assert world.verb(job_id, Verb.RETRY) == "queued"
    assert job_of(world.database, job_id).request_id == "asked-9"


# --- what others are told of it -------------------------------------------------------------------------------------


@pytest.fixture
def families(clients, world) -> dict[str, Metric]:
    """Every metric with at least one sample, by its name."""
    job_id = world.running()
    world.mlflow.runs[f"run-{job_id}"].tags[names.TAG_NEWEST] = NEWEST.model_dump_json()
    world.rounds()
    world.end_attempt(world.running(), Outcome(state="succeeded"))
    world.rounds()
    world.context.lease.finished_round()
    world.context.lease.tick()
    clients.anonymous.get("/healthz")
    registry = registry_of(ServiceCollector(world.app_state, world.reconciler))
    return {family.name: family for family in registry.collect() if family.name.startswith("rcmae_")}


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


def test_the_readme_tells_of_every_metric(families):
    section = (ROOT / "service/operations.md").read_text().partition("## Monitoring")[2].partition("\n## ")[0]
    told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in ROW.findall(section)}
    there = {
        f"{family.name}_total" if family.type == "counter" else family.name: labels_of(family)
        for family in families.values()
    }
    assert told == there


def test_names_follow_the_conventions_and_all_have_a_help_text(families):
    for family in families.values():
        assert family.documentation.endswith(".")
        assert re.fullmatch(r"rcmae(_[a-z]+)+", family.name)
        assert not re.search(r"_(ms|minutes|hours|count|total)$", family.name)


def queries() -> list[str]:
    """Of the alerts and of the dashboard."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    board = json.loads((ROOT / "deploy/grafana/dashboards/rcmae.json").read_text())
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(alerts) > 3
    assert len(panels) > 10
    return alerts + panels


def test_alerts_and_dashboard_ask_for_what_there_is(families):
    labels = {sample.name: labels_of(family) | {"le"} for family in families.values() for sample in family.samples}
    for query in queries():
        asked = QUERIED.findall(query)
        assert asked, query
        for name, matchers in asked:
            assert name in labels, query
            assert set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) <= labels[name], query
        known = set().union(*(labels[name] for name, _ in asked))
        for grouped in GROUPED.findall(query):
            assert {label.strip() for label in grouped.split(",")} <= known, query


def test_prometheus_scrapes_the_services_by_their_names():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    api, controller = config["scrape_configs"]
    assert (api["dns_sd_configs"][0]["names"], api["dns_sd_configs"][0]["port"]) == (["api"], 8000)
    assert controller["static_configs"] == [{"targets": ["controller:9000"]}]
    assert config["rule_files"] == ["/etc/prometheus/rules.yml"]


def test_a_failing_request_is_counted_and_carries_its_id(settings):
    app = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("as told")

    with TestClient(app) as client:
        body = problem(client.get("/broken", headers={"X-Request-ID": "asked-11"}), 500, "internal_error")
        assert body["request_id"] == "asked-11"
        assert value(metrics(client), "rcmae_api_request_seconds_count", method="GET", route="/broken", status="5xx")
