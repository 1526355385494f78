"""What does a write cost in this checkout, beside the same write in another one?"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import text

# Only names of the root that older checkouts have too: this file measures them as well.
from session_lifecycle import Message, Run, SessionDatabase, SessionWriter, Settings, Step, UsageEvent

HERE = Path(__file__).resolve().parent
Call = Callable[[int], Awaitable[object]]
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
SESSIONS = 200
LINES = [("single call", 1), ("single call", 16), ("recorder", 1), ("recorder", 16), ("recorder", 256)]
LINES += [("recorder", 2_000), ("record activity", 1), ("record activity", 50), ("record activity", 500)]


def session_of(number: int) -> str:
    """The session of a call: the calls are spread evenly over the sessions, out of their order."""
    return f"session-{number * 7919 % SESSIONS}"


def items_of_run(user_id: UUID, number: int) -> list[Run | Step | Message | UsageEvent]:
    """The start and the end of a run, two steps, a prompt, and the usage of one response."""
    run_id, session_id, at = f"run-{number}", session_of(number), BEGINNING + timedelta(seconds=number)
    begun = Run(run_id=run_id, user_id=user_id, session_id=session_id, model="gpt-4o", started_at=at)
    ended = begun.model_copy(update={"status": "completed", "ended_at": at + timedelta(seconds=2)})
    steps = [
        Step(step_id=step_id, run_id=run_id, user_id=user_id, kind="tool", started_at=at, output={"rows": [1, 2, 3]})
        for step_id in ("1", "2")
    ]
    prompt = Message.model_validate(
        {
            "message_id": run_id,
            "user_id": user_id,
            "session_id": session_id,
            "run_id": run_id,
            "role": "user",
            "content": "What is the weather like?",
            "created_at": at,
        }
    )
    usage = UsageEvent(
        session_id=session_id,
        user_id=user_id,
        model="gpt-4o",
        tokens_in=120,
        tokens_out=40,
        idempotency_key=run_id,
        at=at,
        run_id=run_id,
    )
    return [begun, prompt, *steps, usage, ended]


async def calls_a_second(call: Call, callers: int, seconds: float) -> float:
    """How many calls these callers finish in a second, each awaiting one after another."""
    numbers = count()
    began = time.perf_counter()

    async def caller() -> None:
        while time.perf_counter() < began + seconds:
            await call(next(numbers))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return next(numbers) / (time.perf_counter() - began)


async def measure(db: SessionDatabase, line: str, size: int, seconds: float) -> float:
    """Measures one line with so many callers, or with batches of so many items; a new user each time."""
    user_id = uuid4()

    def use(writer: SessionWriter) -> Call:
        return lambda number: writer.accumulate_usage(
            session_of(number), user_id, "gpt-4o", 120, 40, 0.012, idempotency_key=uuid4().hex
        )

    if line == "single call":
        return await calls_a_second(use(db.lifecycle), size, seconds)
    if line == "recorder":
        async with db.recorder() as recorder:
            return await calls_a_second(use(recorder), size, seconds)
    kept: list[Run | Step | Message | UsageEvent] = []
    runs = count()

    async def record_next(_: int) -> None:
        while len(kept) < size:
            kept.extend(items_of_run(user_id, next(runs)))
        batch = kept[:size]
        del kept[:size]
        await db.lifecycle.record(batch)

    return await calls_a_second(record_next, 1, seconds) * size


@contextmanager
def data_folder() -> Generator[Path]:
    """A folder that the server can enter, which does not run as root."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


async def serve() -> None:
    """Measures a block for each line of the standard input, until it ends."""
    loop = asyncio.get_running_loop()
    with data_folder() as folder:
        async with SessionDatabase.embedded(folder / "data", settings=Settings(pool_size=16, max_overflow=0)) as db:
            await db.migrate()
            print("ready", flush=True)
            while asked := await loop.run_in_executor(None, sys.stdin.readline):
                async with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                    await connection.execute(text("CHECKPOINT"))
                print(await measure(db, *json.loads(asked)), flush=True)


class Side:
    """One checkout: a process that imports it, and a server of its own."""

    def __init__(self, checkout: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        process = subprocess.Popen(  # noqa: S603 - this file, by this interpreter
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if process.stdin is None or process.stdout is None:
            raise SystemExit("a side has no pipes")
        self._process, self._questions, self._answers = process, process.stdin, process.stdout
        self._answer()

    def _answer(self) -> str:
        answer = self._answers.readline()
        if not answer:
            raise SystemExit("one side ended; its message is above")
        return answer

    def measure(self, line: str, size: int, seconds: float) -> float:
        """Calls a second, or items a second, of one block."""
        self._questions.write(json.dumps([line, size, seconds]) + "\n")
        self._questions.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process and its server."""
        self._questions.close()
        self._process.wait()


def row(line: str, size: int, other: Sequence[float], this: Sequence[float]) -> str:
    """One line of the table; the ratio is the median of the ratios of the turns."""
    ratios = sorted(new / old for new, old in zip(this, other, strict=True))
    quarter = len(ratios) // 4
    cells = [line, f"{size:,}", f"{statistics.median(other):,.0f}", f"{statistics.median(this):,.0f}"]
    cells += [f"{statistics.median(ratios):.3f}", f"{ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Blocks of both sides in turns: a machine's speed varies within seconds, and the order changes each turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, nargs="?", help="the folder of the other checkout")
    parser.add_argument("--turns", type=int, default=20, help="how many blocks of each line each side is given")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a block takes")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    if arguments.checkout is None:
        parser.error("name the folder of the other checkout")
    sides = {"other": Side(arguments.checkout.resolve()), "this": Side(HERE.parent)}
    print("|  | callers or items | other/s | this/s | this / other | middle half |\n|---|---:|---:|---:|---:|---:|")
    for line, size in LINES:
        found: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(-1, arguments.turns):
            for name in sorted(sides, reverse=turn % 2 == 0):
                measured = sides[name].measure(line, size, arguments.seconds)
                if turn >= 0:  # the first block of each warms up
                    found[name].append(measured)
        print(row(line, size, found["other"], found["this"]), flush=True)
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main()
