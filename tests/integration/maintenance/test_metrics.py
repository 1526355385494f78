"""The metrics of a database: their text, the registries of a host, the alerts and the dashboard that name them."""

import asyncio
import gc
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import prometheus_client
import pytest
import yaml
from opentelemetry import metrics as otel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from session_lifecycle import ConfigurationError, SessionDatabase, Spool, Touch
from session_lifecycle.maintenance.metrics import METRICS, OF_RECORDERS, OF_SPOOL, otel_name
from session_lifecycle.web.metrics import metrics_app
from support.commands import run, succeed
from support.eventually import eventually

USER = UUID(int=1)
DOCS = Path(__file__).parents[3] / "docs"
NAMES = {one.name for one in METRICS}
WITHOUT_SPOOL = {one.name for one in METRICS if one not in OF_SPOOL.values()}


def parsed(text: str) -> dict[str, float]:
    """The samples as Prometheus's own parser reads them."""
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def named_in(file: str) -> set[str]:
    return set(re.findall(r"session_lifecycle_\w+", (DOCS / file).read_text()))


async def test_prometheus_reads_every_metric(session_database: SessionDatabase, tmp_path: Path) -> None:
    metrics = session_database.metrics(spool=tmp_path / "spool")
    assert metrics.values()[OF_SPOOL["items"]] == 0
    with Spool(tmp_path / "spool") as spool:
        spool.append([{"kind": "touch", "session_id": "s", "user_id": str(USER)}])
    async with session_database.recorder() as recorder:
        await recorder.record([Touch(session_id="s", user_id=USER)])
        await recorder.accumulate_usage("s", USER, "made-up", 1)
        found = parsed(await metrics.text())
    assert found.keys() == NAMES
    assert found["session_lifecycle_recorder_items_total"] == 2
    assert found["session_lifecycle_database_up"] == 1
    assert found["session_lifecycle_spool_items"] == 1
    assert found["session_lifecycle_unpriced_events"] == 1
    assert found["session_lifecycle_drift_sample_sessions"] == 1
    assert found["session_lifecycle_drift_sample_mismatches"] == 0


async def test_a_counter_does_not_fall_when_its_recorder_is_gone(session_database: SessionDatabase) -> None:
    metrics = session_database.metrics()
    for number in range(1, 4):
        async with session_database.recorder() as recorder:
            await recorder.record([Touch(session_id="s", user_id=USER)])
        del recorder
        gc.collect()
        assert parsed(await metrics.text())["session_lifecycle_recorder_items_total"] == number


async def test_the_figures_are_read_once_for_all_who_ask(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, measure = 0, session_database.measure

    async def counted() -> Any:
        nonlocal read
        read += 1
        return await measure()

    monkeypatch.setattr(session_database, "measure", counted)
    metrics = session_database.metrics(max_age=3600)
    await asyncio.gather(*(metrics.text() for _ in range(20)))
    await metrics.text()
    assert read == 1
    async with session_database.metrics(max_age=0.05):
        await eventually(lambda: read >= 4)


async def test_without_the_database_the_other_metrics_are_there() -> None:
    async with SessionDatabase.connect("postgresql://u@127.0.0.1:1/x") as db:
        found = parsed(await db.metrics().text())
        assert found["session_lifecycle_database_up"] == 0
        assert "session_lifecycle_unpriced_events" not in found
        for wrong in (0, -1, True, float("inf"), "1"):
            with pytest.raises(ConfigurationError, match="max_age: got"):
                db.metrics(max_age=wrong)  # type: ignore[arg-type]  # what a host without a type checker does


async def test_a_registry_of_the_host_gets_them_when_it_is_given(session_database: SessionDatabase) -> None:
    registry = prometheus_client.CollectorRegistry()
    before = prometheus_client.generate_latest(prometheus_client.REGISTRY)
    metrics = session_database.metrics()
    metrics.register(registry)
    async with metrics:
        found = parsed(prometheus_client.generate_latest(registry).decode())
    assert found.keys() == WITHOUT_SPOOL
    assert b"session_lifecycle" not in before
    assert b"session_lifecycle" not in prometheus_client.generate_latest(prometheus_client.REGISTRY)


async def test_opentelemetry_gets_them_by_a_provider_that_is_given(session_database: SessionDatabase) -> None:
    reader = InMemoryMetricReader()
    metrics = session_database.metrics()
    metrics.observe(MeterProvider([reader]))
    async with metrics:
        data = reader.get_metrics_data()
    assert data is not None
    found = {one.name: one for scope in data.resource_metrics[0].scope_metrics for one in scope.metrics}
    expected = {otel_name(one) for one in METRICS if one.name in WITHOUT_SPOOL and one not in OF_RECORDERS.values()}
    assert found.keys() == expected
    assert found["session_lifecycle.roll_up_lag"].unit == "s"
    assert not isinstance(otel.get_meter_provider(), MeterProvider)


async def test_an_asgi_application_answers_whom_the_host_allows(session_database: SessionDatabase) -> None:
    async def allows(scope: Any) -> bool:
        return (b"authorization", b"Bearer right") in scope["headers"]

    app: Any = metrics_app(session_database.metrics(), allows=allows)
    transport = httpx.ASGITransport(app)
    right = {"Authorization": "Bearer right"}
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        assert (await client.get("/metrics")).status_code == 403
        answer = await client.get("/metrics", headers=right)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert parsed(answer.text).keys() == WITHOUT_SPOOL
        assert (await client.head("/metrics", headers=right)).content == b""
        assert (await client.post("/metrics", headers=right)).status_code == 405


def test_the_command_prints_them(session_database_url: str) -> None:
    assert parsed(succeed("metrics", "--database-url", session_database_url)).keys() == WITHOUT_SPOOL
    away = run("metrics", "--database-url", "postgresql://u@127.0.0.1:1/x")
    assert away.returncode == 1
    assert parsed(away.stdout)["session_lifecycle_database_up"] == 0


def test_every_metric_that_is_named_exists_and_every_one_is_documented() -> None:
    assert named_in("reference/metrics.md") == NAMES
    for file in ("monitoring/alerts.yml", "monitoring/grafana.json"):
        assert named_in(file) <= NAMES
    # Every metric is on the dashboard or in an alert; the size of the sample only explains another one.
    shown = named_in("monitoring/alerts.yml") | named_in("monitoring/grafana.json")
    assert NAMES - shown == {"session_lifecycle_drift_sample_sessions"}


def test_the_names_follow_the_conventions_of_prometheus() -> None:
    for one in METRICS:
        assert re.fullmatch(r"session_lifecycle_[a-z]+(_[a-z]+)*", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter")
        assert one.name.endswith("_seconds") == (one.unit == "s")
        assert one.name.endswith("_bytes") == (one.unit == "By")
    assert len(NAMES) == len(METRICS)


def test_the_alerts_and_the_dashboard_can_be_loaded() -> None:
    [group] = yaml.safe_load((DOCS / "monitoring/alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule.keys() >= {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "do"}
    dashboard = json.loads((DOCS / "monitoring/grafana.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(places) == len(set(places))
