"""A server and its streaming standby, real ones, on directories of their own."""

import asyncio
import os
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

import waiting
from session_lifecycle.binaries import Account, run_program
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir


class Standby:
    """A primary server, and one that streams from it and cancels at once what is in the way of that."""

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
        self.primary = primary
        self.server = standby

    def url_of(self, primary_url: str) -> str:
        """Where the standby has this database of the primary."""
        return self.server.url_for(make_url(primary_url).database or "")

    async def caught_up(self) -> None:
        """Waits until it has replayed all that was committed by now."""
        # Whoever commits synchronously, if there is anything to commit, writes out what others have left as well.
        commit = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '', '')"
        written = await ask(self.primary.url, "SELECT pg_current_wal_flush_lsn()::text", first=commit)
        await until(self.server.url, f"SELECT pg_last_wal_replay_lsn() >= '{written}'")

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """It stays as it is now, and goes on when the block is left."""
        await self.caught_up()
        await ask(self.server.url, "SELECT pg_wal_replay_pause()")
        try:
            await until(self.server.url, "SELECT pg_get_wal_replay_pause_state() = 'paused'")
            yield
        finally:
            await ask(self.server.url, "SELECT pg_wal_replay_resume()")


@contextmanager
def running_standby() -> Generator[Standby]:
    """Both servers, until the block is left."""
    with temporary_data_dir() as primary_dir, temporary_data_dir() as standby_dir:
        primary = asyncio.run(EmbeddedPostgres.start(primary_dir, durable=False))
        try:
            _copy(primary, standby_dir)
            server = asyncio.run(EmbeddedPostgres.start(standby_dir, durable=False))
            try:
                yield Standby(primary, server)
            finally:
                asyncio.run(server.stop())
        finally:
            asyncio.run(primary.stop())
        left = [directory for directory in (primary_dir, standby_dir) if (directory / "postmaster.pid").exists()]
        assert not left


def _copy(primary: EmbeddedPostgres, standby_dir: Path) -> None:
    """Makes a data directory that streams from the primary, and looks like one of an embedded server."""
    url = make_url(primary.url)
    account: Account | None = None
    standby_dir.mkdir(mode=0o700)
    if os.geteuid() == 0:
        owner = primary.data_dir.stat()
        account = Account(f"user {owner.st_uid}", owner.st_uid, owner.st_gid)
        os.chown(standby_dir, owner.st_uid, owner.st_gid)
    address = f"host={url.host} port={url.port} user={url.username}"
    options = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
    command = [primary.bin_dir / "pg_basebackup", *options, "--dbname", address, "--pgdata", standby_dir]
    copied = run_program(command, account, PGPASSWORD=str(url.password))
    assert copied.returncode == 0, copied.stdout
    with (standby_dir / "postgresql.auto.conf").open("a") as settings:
        settings.write("max_standby_streaming_delay = 0\n")
    control = standby_dir.with_name(f"{standby_dir.name}.control")
    control.mkdir(mode=0o711)
    (control / "password").write_text(str(url.password))


async def ask(url: str, sql: str, *, first: str | None = None) -> Any:
    """The one value, of a connection that ran something first."""
    connection = await asyncpg.connect(url)
    try:
        if first is not None:
            await connection.execute(first)
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def until(url: str, sql: str) -> None:
    """Waits until it is true; within a while it is."""
    await waiting.until(lambda: ask(url, sql), within_seconds=60)
