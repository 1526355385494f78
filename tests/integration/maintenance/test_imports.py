"""Imports of complete exports: every answer is that of the database that was exported, and nothing comes in twice."""

from pathlib import Path
from typing import Any

import pytest

from session_lifecycle import SessionDatabase
from session_lifecycle.maintenance.export_files import export_to_folder
from session_lifecycle.testing import TemplateServer
from support.transfer import PRICES, another_database, answers, live


@pytest.fixture
async def source(session_database_url: str) -> Any:
    async with SessionDatabase.connect(session_database_url, prices=PRICES) as db:
        await live(db)
        yield db


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
async def test_an_import_into_an_empty_database_gives_every_answer_again(
    source: SessionDatabase, session_template_server: TemplateServer, tmp_path: Path, file_format: Any
) -> None:
    await export_to_folder(source.maintenance.export, tmp_path / "all", file_format)
    before = await answers(source)
    async with another_database(session_template_server) as target:
        refused: list[Any] = []
        report = await target.maintenance.import_export(tmp_path / "all", on_refused=refused.append)
        assert refused == []
        assert (report.refused_rows, report.mismatch_count) == (0, 0)
        after = await answers(target)
        assert {name for name in before if before[name] != after[name]} == set()
