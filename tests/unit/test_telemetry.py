"""The recorders' figures, as OpenTelemetry's own SDK reads them."""

import json
import subprocess
import sys

PROGRAM = """
import asyncio, json
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
from session_lifecycle import SessionDatabase, Settings, Touch
from uuid import UUID

async def main():
    db = SessionDatabase.connect("postgresql://u@127.0.0.1:1/x", settings=Settings(retries=0))
    async with db, db.recorder(give_up_after=0, drain_within=0) as one, db.recorder(drain_within=0) as other:
        one.submit(Touch("s", UUID(int=1)))
        other.submit(Touch("s", UUID(int=1)))
        other.submit(Touch("s", UUID(int=1)))
        while not one.snapshot().failures:
            await asyncio.sleep(0.01)
        [resource] = reader.get_metrics_data().resource_metrics
        [scope] = resource.scope_metrics
        print(json.dumps({metric.name: metric.data.data_points[0].value for metric in scope.metrics}))

asyncio.run(main())
"""

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from session_lifecycle.telemetry import observe
observe(object())
"""


def test_the_figures_of_all_recorders_are_told() -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = {name.removeprefix("session_lifecycle.recorder."): value for name, value in json.loads(ran.stdout).items()}
    assert told.pop("oldest_waiting") > 0
    assert told.pop("repeats") >= 0
    assert told == {"pending": 2, "waiting": 0, "batches": 0, "items": 0, "failures": 1}


def test_without_opentelemetry_nothing_is_told_and_nothing_breaks() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
