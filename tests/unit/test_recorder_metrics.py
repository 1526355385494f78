"""The recorder metrics, as OpenTelemetry's own SDK reads them."""

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

def touch():
    return Touch(session_id="s", user_id=UUID(int=1))

async def main():
    db = SessionDatabase.connect("postgresql://u@127.0.0.1:1/x", settings=Settings(retries=0))
    async with db, db.recorder(give_up_after=0, drain_within=0) as one, db.recorder(drain_within=0) as other:
        one.submit(touch())
        other.submit(touch())
        other.submit(touch())
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
from session_lifecycle.writing.recorder_metrics import observe
observe(object())
"""


def test_a_metric_is_the_sum_over_all_recorders() -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    prefix = "session_lifecycle.recorder."
    values = {name.removeprefix(prefix): value for name, value in json.loads(ran.stdout).items()}
    assert values.pop("oldest_waiting") > 0
    assert values.pop("repeats") >= 0
    assert values == {"pending": 2, "waiting": 0, "batches": 0, "items": 0, "failures": 1}


def test_without_opentelemetry_there_are_no_metrics_and_no_error() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
