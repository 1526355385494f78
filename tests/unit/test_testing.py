"""The folder in which the fixtures' own server keeps its data."""

import shutil
from pathlib import Path

import pytest

from session_lifecycle import testing


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the folder in memory, with room for two workers and no other folder chosen."""
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(testing, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(testing, "GIB", free // 5)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    return tmp_path


def test_data_is_kept_in_memory_where_all_workers_have_room(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert testing.folder_in_memory() == memory
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    assert testing.folder_in_memory() == memory
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
    assert testing.folder_in_memory() is None


def test_another_folder_may_be_chosen(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(memory))
    assert testing.folder_in_memory() is None


def test_a_system_may_lack_the_folder_in_memory(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "SHARED_MEMORY", memory / "absent")
    assert testing.folder_in_memory() is None
