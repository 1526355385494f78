"""A real server and its streaming standby, each on its own directory."""

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from session_lifecycle.postgres.binaries import Account, run_program
from session_lifecycle.postgres.embedded import EmbeddedPostgres, temporary_data_dir
from support.eventually import eventually


class Standby:
    """A primary server and a standby, which cancels at once every query that conflicts with recovery."""

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
        self.primary = primary
        self.server = standby

    def url_of(self, primary_url: str) -> str:
        """The URL of this database of the primary on the standby."""
        return self.server.url_for(make_url(primary_url).database or "")

    async def caught_up(self) -> None:
        """Waits until the standby has replayed everything committed so far."""
        # A synchronous commit of a real change also flushes the WAL of earlier asynchronous commits.
        commit = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '', '')"
        written = await ask(self.primary.url, "SELECT pg_current_wal_flush_lsn()::text", first=commit)
        await eventually_on(self.server.url, f"SELECT pg_last_wal_replay_lsn() >= '{written}'")

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Pauses the replay on the standby until the block is left."""
        await self.caught_up()
        await ask(self.server.url, "SELECT pg_wal_replay_pause()")
        try:
            await eventually_on(self.server.url, "SELECT pg_get_wal_replay_pause_state() = 'paused'")
            yield
        finally:
            await ask(self.server.url, "SELECT pg_wal_replay_resume()")


@contextmanager
def running_standby() -> Generator[Standby]:
    """Runs both servers until the block is left."""
    with temporary_data_dir() as primary_dir, temporary_data_dir() as standby_dir:
        primary = asyncio.run(EmbeddedPostgres.start(primary_dir, durable=False, tcp=True))
        try:
            _copy(primary, standby_dir)
            server = asyncio.run(EmbeddedPostgres.start(standby_dir, durable=False, tcp=True))
            try:
                yield Standby(primary, server)
            finally:
                asyncio.run(server.stop())
        finally:
            asyncio.run(primary.stop())
        left = [directory for directory in (primary_dir, standby_dir) if (directory / "postmaster.pid").exists()]
        assert not left


def _copy(primary: EmbeddedPostgres, standby_dir: Path) -> None:
    """Makes a data directory that streams from the primary and that the embedded server accepts as its own."""
    url = make_url(primary.url)
    account: Account | None = None
    standby_dir.mkdir(mode=0o700)
    if os.geteuid() == 0:
        owner = primary.data_dir.stat()
        account = Account(f"user {owner.st_uid}", owner.st_uid, owner.st_gid)
        os.chown(standby_dir, owner.st_uid, owner.st_gid)
    address = f"host={url.host} port={url.port} user={url.username}"
    options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
    program = primary.bin_dir / "pg_basebackup"
    command: list[Path | str] = [program, *options, "--dbname", address, "--pgdata", standby_dir]
    copied = run_program(command, account, PGPASSWORD=str(url.password))
    assert copied.returncode == 0, copied.stdout
    with (standby_dir / "postgresql.auto.conf").open("a") as settings:
        settings.write("max_standby_streaming_delay = 0\n")
    control = standby_dir.with_name(f"{standby_dir.name}.control")
    control.mkdir(mode=0o711)
    (control / "password").touch(0o600)
    (control / "password").write_text(str(url.password))


async def ask(url: str, sql: str, *, first: str | None = None) -> Any:
    """The one value of a query; `first` runs before it on the same connection."""
    connection = await asyncpg.connect(url)
    try:
        if first is not None:
            await connection.execute(first)
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def eventually_on(url: str, sql: str) -> None:
    """Waits until the query's value is true."""
    await eventually(lambda: ask(url, sql), within_seconds=60)
