"""The wheel: what is in it, and migrating with it where there is no clone."""

import asyncio
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

from session_lifecycle import SessionDatabase

ROOT = Path(__file__).parents[2]

MIGRATE = """
import asyncio, sys
import session_lifecycle
from session_lifecycle import SessionDatabase

async def main():
    async with SessionDatabase.connect(sys.argv[1]) as db:
        await db.migrate()
        await db.check()
        print(session_lifecycle.__file__)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "-w", str(folder)]
    if find_spec("hatchling"):
        command.append("--no-build-isolation")
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_is_complete(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = ROOT / "alembic"
    scripts = [*source.glob("versions/*.py"), *source.glob("functions/*/*.sql"), source / "env.py"]
    assert {f"session_lifecycle/_alembic/{script.relative_to(source)}" for script in scripts} <= names
    web = ROOT / "src" / "session_lifecycle" / "web"
    files = [*(ROOT / "src").rglob("*.py"), *web.glob("templates/**/*.html"), *web.glob("static/*")]
    assert {str(file.relative_to(ROOT / "src")) for file in files} <= names
    assert "session_lifecycle/web/static/uplot.LICENSE.txt" in names
    assert "session_lifecycle/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"session_lifecycle"}
    assert not [name for name in names if "__pycache__" in name]


async def test_an_installed_library_migrates(wheel: Path, empty_url: str, tmp_path: Path) -> None:
    # A name that is hard on Alembic's configuration file.
    target = tmp_path / "100% installed: here"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SESSION_")}

    def install_and_migrate() -> str:
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target"]
        subprocess.run([*install, str(target), str(wheel)], cwd=tmp_path, timeout=60, check=True)
        return subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{MIGRATE}", empty_url],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    printed = await asyncio.to_thread(install_and_migrate)
    assert Path(printed.strip()).is_relative_to(target)
    async with SessionDatabase.connect(empty_url) as db:
        await db.check()
