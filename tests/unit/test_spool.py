"""The spool without a database: what it keeps, whom it lets in, and what it says when it cannot keep an item."""

import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import (
    ConfigurationError,
    End,
    InvalidValueError,
    Message,
    Run,
    Spool,
    SpoolError,
    SpoolFullError,
    Step,
    Touch,
    UsageEvent,
)
from session_lifecycle.models import Item
from session_lifecycle.writing.spool_drain import item_of, spooled_fields

USER = UUID(int=1)
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def usage(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"kind": "usage", "session_id": "s", "user_id": str(USER), "tokens_in": 1, **fields} | (
        {"idempotency_key": f"k{number}"} if number else {}
    )


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


def append_until_full(spool: Spool, items: list[dict[str, Any]]) -> int:
    """Returns how many items the spool has acknowledged."""
    kept = 0
    while True:
        try:
            kept += spool.append(items)
        except SpoolFullError:
            return kept


def items_in(spool: Spool) -> list[dict[str, Any]]:
    return [json.loads(one.item) for one in spool.read(1000)]


def test_appending_loads_the_standard_library_only(tmp_path: Path) -> None:
    program = f"""
import sys
at_start = set(sys.modules)
from session_lifecycle.writing.spool import Spool
with Spool({str(tmp_path / "spool")!r}) as spool:
    spool.append([{usage()!r}])
    spool.status()
names = {{name.partition(".")[0] for name in set(sys.modules) - at_start}}
print(*sorted(names - set(sys.stdlib_module_names) - {{"session_lifecycle"}}))
print(*sorted(name for name in sys.modules if name.startswith("session_lifecycle.")))
print("asyncio" in set(sys.modules) - at_start)
"""
    foreign, ours, has_asyncio = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()
    assert (foreign, has_asyncio) == ("", "False")
    assert set(ours.split()) == {
        "session_lifecycle._version",
        "session_lifecycle.errors",
        "session_lifecycle.writing",
        "session_lifecycle.writing.spool",
        "session_lifecycle.writing.spool_directory",
    }


def test_a_commit_is_synced_to_disk(spool: Spool) -> None:
    spool.append([usage()])
    # No other way shows what a power failure would leave.
    with spool._opened() as connection:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - see above
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_default_place_is_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Spool().path == tmp_path / "session-lifecycle" / "spool"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert Spool().path == tmp_path / ".local/state/session-lifecycle/spool"


def test_only_the_owner_may_look(spool: Spool) -> None:
    before = os.umask(0)
    try:
        spool.append([usage()])
        with spool.draining():
            assert spool.status().is_draining
    finally:
        os.umask(before)
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in spool.path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"spool.db", "spool.db-wal", "drain.lock"} <= set(modes)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigurationError, match="not a directory"):
        Spool(tmp_path / "link").append([usage()])
    for name, make in (
        ("spool.db", Path.symlink_to),
        ("make.lock", Path.symlink_to),
        ("spool.db", Path.hardlink_to),
    ):
        directory = tmp_path / f"{name}-{make.__name__}"
        directory.mkdir(mode=0o700)
        target = tmp_path / f"target-{directory.name}"
        target.touch(mode=0o600)
        make(directory / name, target)
        with pytest.raises(ConfigurationError, match="file"):
            Spool(directory).append([usage()])
        assert target.read_bytes() == b""


def test_a_place_that_others_may_enter_is_refused(tmp_path: Path, spool: Spool) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    with pytest.raises(ConfigurationError, match="has the mode 750"):
        Spool(tmp_path / "open").append([usage()])
    spool.append([usage()])
    spool.close()
    (spool.path / "spool.db").chmod(0o640)
    with pytest.raises(ConfigurationError, match="only the current user"):
        spool.status()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_place_of_another_user_is_refused(spool: Spool) -> None:
    spool.append([usage()])
    spool.close()
    os.chown(spool.path, 12345, 12345)
    with pytest.raises(ConfigurationError, match="belongs to the user 12345"):
        spool.append([usage()])


def test_an_item_keeps_its_fields_and_gets_a_key_and_a_time(spool: Spool) -> None:
    before = datetime.now(UTC)
    given = usage(idempotency_key="mine", at="2026-01-02T03:04:05Z")
    run = {"kind": "run", "run_id": "r", "user_id": str(USER), "started_at": "2026-01-02T03:04:05Z"}
    assert spool.append([usage(), usage(), given, run]) == 4
    first, second, third, fourth = items_in(spool)
    assert third == given
    assert fourth == run
    assert first["idempotency_key"] != second["idempotency_key"]
    assert before <= datetime.fromisoformat(first["at"]) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "item",
    [
        Touch(session_id="s", user_id=USER, at=AT, title="t", tags={"a": "b"}, metadata={"n": 1}),
        UsageEvent(
            session_id="s", user_id=USER, at=AT, model="m", tokens_in=9, details={"cache_read_input": 3},
            cost_usd=Decimal("0.000000000001"), idempotency_key="k", kind="embedding",
        ),
        UsageEvent(session_id="s", user_id=USER, at=AT, measured=False, idempotency_key="k", revision=1),
        End(session_id="s", user_id=USER, at=AT, status="failed", reason="r"),
        Run(run_id="r", user_id=USER, started_at=AT, ended_at=AT, input={"a": [1.5, None]}, quality_score=0.5),
        Step(step_id="t", run_id="r", user_id=USER, kind="tool", started_at=AT, errors=[{"message": "\u2028 é 😀"}]),
        Message(message_id="m", user_id=USER, session_id="s", role="human", content="\u2028 é 😀", created_at=AT),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_every_kind_of_item_comes_back_as_it_was(spool: Spool, item: Item) -> None:
    spool.append([spooled_fields(item)])
    [kept] = spool.read(10)
    assert item_of(kept.item) == item


@pytest.mark.parametrize("bad", [{"kind": "other"}, {}, "text", usage(model={1, 2}), usage(model=b"x")])
def test_one_wrong_item_keeps_the_others_out(spool: Spool, bad: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"items\.1"):
        spool.append([usage(), bad])
    assert spool.status().items == 0


def test_a_value_that_json_cannot_hold_is_named_by_its_field_and_type(spool: Spool) -> None:
    item = {"kind": "touch", "session_id": "s", "user_id": UUID(int=1)}
    expected = "items.0.user_id: got 'UUID', expected what JSON can hold, as `model_dump(mode=\"json\")` makes it"
    with pytest.raises(InvalidValueError) as refused:
        spool.append([item])
    assert str(refused.value) == expected


def test_a_spool_has_a_bound_and_room_again_after_delivery(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=200_000)
    kept = append_until_full(spool, [usage(model="x" * 400)] * 10)
    assert spool.status().items == kept > 10
    assert (spool.path / "spool.db").stat().st_size <= 200_000
    with pytest.raises(SpoolFullError):
        spool.append([usage(model="x" * 400)] * 10)
    spool.settle(spool.read(kept)[kept // 2].position, [])
    assert spool.append([usage(model="x" * 400)] * 10) == 10


def test_what_was_delivered_does_not_stay_in_the_file(spool: Spool) -> None:
    spool.append([usage(model="private words")] * 6000)
    assert (spool.path / "spool.db-wal").stat().st_size > 1_000_000
    spool.settle(6000, [])
    spool.shrink()
    spool.close()
    content = b"".join(file.read_bytes() for file in spool.path.iterdir())
    assert b"private words" not in content
    assert len(content) < 100_000


def test_a_limit_on_the_size_of_files_loses_no_acknowledged_item(tmp_path: Path) -> None:
    program = f"""
import resource, sys
from session_lifecycle.errors import SpoolError
from session_lifecycle.writing.spool import Spool
spool = Spool({str(tmp_path / "spool")!r})
spool.append([])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
kept = refused = 0
for number in range(600):
    try:
        kept += spool.append([{usage(model="x" * 900)!r}])
    except SpoolError as error:
        refused += 1
print(kept, refused)
"""
    kept, refused = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert refused > 100
    assert Spool(tmp_path / "spool").status().items == kept > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_loses_no_acknowledged_item(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with Spool(tmp_path / "spool") as spool:
            kept = append_until_full(spool, [usage(model="x" * 900)])
            spool.close()
            assert spool.status().items == kept > 10
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_threads_may_append_at_once(spool: Spool) -> None:
    def append(thread: int) -> None:
        for number in range(20):
            spool.append([usage(thread * 100 + number + 1)])

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [item["idempotency_key"] for item in items_in(spool)]
    assert len(keys) == len(set(keys)) == 80


def test_a_forked_child_uses_the_same_object(spool: Spool) -> None:
    spool.append([usage(1)])
    with spool.draining():
        child = multiprocessing.get_context("fork").Process(target=spool.append, args=([usage(2)],))
        child.start()
        child.join(30)
    assert child.exitcode == 0
    spool.append([usage(3)])
    assert [item["idempotency_key"] for item in items_in(spool)] == ["k1", "k2", "k3"]


FORKING = """
import os, sys
from session_lifecycle.writing.spool import Spool
item = {"kind": "touch", "session_id": "s", "user_id": "u"}
spool = Spool(sys.argv[1])
spool.append([item])
told, tell = os.pipe()
closed, close = os.pipe()
if (child := os.fork()) == 0:
    spool.append([item])
    os.write(tell, b"x")
    os.read(closed, 1)
    spool.append([item])
    os._exit(0)
os.read(told, 1)
spool.close()  # were it the last user, it would delete the log in which the child writes
os.write(close, b"x")
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_parent_that_closes_the_spool_takes_nothing_from_its_child(spool: Spool) -> None:
    subprocess.run([sys.executable, "-c", FORKING, spool.path], check=True, timeout=60)
    assert spool.status().items == 3


def test_what_was_acknowledged_survives_a_kill(spool: Spool) -> None:
    program = f"""
from session_lifecycle.writing.spool import Spool
spool, number = Spool({str(spool.path)!r}), 0
while True:
    number += 1
    spool.append([{usage()!r} | {{"idempotency_key": f"k{{number}}"}}])
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    for line in process.stdout:
        last = max(last, int(line))
        if last == 20:
            process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    keys = [item["idempotency_key"] for item in items_in(spool)]
    assert keys[:last] == [f"k{number}" for number in range(1, last + 1)]
    assert len(keys) <= last + 1


def test_a_lock_of_others_is_waited_for_and_then_told(spool: Spool) -> None:
    spool.append([usage()])
    other = sqlite3.connect(spool.path / "spool.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpoolError, match=r"locked for 0\.1 s"):
        Spool(spool.path, busy_seconds=0.1).append([usage()])
    other.execute("COMMIT")
    other.close()
    spool.append([usage()])
    assert spool.status().items == 2


HOLDER = """
import os, sys, time
from session_lifecycle.writing.spool import Spool
spool = Spool(sys.argv[1])
began, begins = os.pipe()
with spool.draining():
    if os.fork() == 0:  # a child that lives on must not keep the lock
        os.write(begins, b"x")
        sys.stdout.close()
        time.sleep(60)
        os._exit(0)
    os.read(began, 1)  # a child that has not run yet still has the lock
    print("draining", flush=True)
    time.sleep(60)
"""


def test_one_drainer_at_a_time_and_its_lock_dies_with_it(spool: Spool) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, spool.path], stdout=subprocess.PIPE, text=True,
                              start_new_session=True)  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "draining\n"
        assert spool.status().is_draining
        with pytest.raises(SpoolError, match="another drainer"), spool.draining():
            pass
        holder.kill()
        holder.wait()
        with spool.draining(), pytest.raises(SpoolError, match="another drainer"), Spool(spool.path).draining():
            pass
        assert not spool.status().is_draining
        holder.stdout.close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_poison_is_shown_put_back_and_dropped(spool: Spool) -> None:
    spool.append([usage(1), usage(2), usage(3)])
    first, second, third = spool.read(3)
    spool.settle(third.position, [(first, "a"), (second, "b")])
    assert [(one.item, one.reason) for one in spool.poison()] == [(first.item, "a"), (second.item, "b")]
    assert [one.reason for one in spool.poison(limit=1, after=first.position)] == ["b"]
    assert (spool.status().items, spool.status().poison) == (0, 2)
    assert spool.retry_poison() == 2
    assert [item["idempotency_key"] for item in items_in(spool)] == ["k1", "k2"]
    [one, _] = spool.read(2)
    spool.settle(one.position, [(one, "a")])
    assert spool.drop_poison() == 1
    assert (spool.status().items, spool.status().poison) == (1, 0)


def test_a_place_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file" / "spool")
    for call in (lambda: spool.append([usage()]), spool.status, spool.begin_draining, lambda: spool.read(1)):
        with pytest.raises(SpoolError, match="cannot be used"):
            call()


def test_a_damaged_file_is_told(spool: Spool) -> None:
    spool.append([usage()])
    spool.close()
    (spool.path / "spool.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(SpoolError, match="damaged"):
        spool.append([usage()])


def test_a_file_of_another_version_is_told(spool: Spool) -> None:
    spool.append([usage()])
    spool.close()
    with sqlite3.connect(spool.path / "spool.db") as other:
        other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(SpoolError, match="version 9, expected 1"):
        spool.append([usage()])


@pytest.mark.parametrize("arguments", [{"max_bytes": 1}, {"max_bytes": True}, {"busy_seconds": -1}])
def test_a_wrong_argument_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Spool("/nowhere", **arguments)
