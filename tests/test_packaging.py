"""What is published is what is here: sdist, then the wheel made from it, compared with the tree and run elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("mesh", "transport", "index", "sim")
NOT_SHIPPED = shutil.ignore_patterns(
    ".*", "tests", "docs", "examples", "changes", "build", "dist", "*.egg-info", "__pycache__", "requirements"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel from a copy of the tree, without a network; return the folder they are in.

    The copy has no git: what is shipped must not depend on it.
    """
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=NOT_SHIPPED)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(built: Path, wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def tree_files() -> set[str]:
    """Return what the wheel must hold: modules, the type marker, and the demo's text, links followed by hand."""
    found = set()
    for folder, prefix in [(ROOT / "p2pkv", "p2pkv"), *((ROOT / name, f"p2pkv/{name}") for name in LINKED)]:
        for pattern in ("**/*.py", "**/*.typed", "bench/*.c", "demo/*.txt"):
            for path in folder.glob(pattern):
                relative = path.relative_to(folder)
                if folder.name != "p2pkv" or relative.parts[0] not in LINKED:
                    found.add(f"{prefix}/{relative.as_posix()}")
    return found


def test_the_wheel_holds_every_module_and_data_file_of_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = tree_files()
    assert {"p2pkv/py.typed", "p2pkv/demo/document.txt", "p2pkv/mesh/members.py", "p2pkv/sim/cli.py"} <= expected
    assert held == expected


def test_the_sdist_holds_what_a_wheel_is_made_of(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", *tree_files()} <= names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata_name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(metadata_name).decode()
        scripts = archive.read(metadata_name.replace("METADATA", "entry_points.txt")).decode()
        licences = [name for name in archive.namelist() if "/licenses/" in name]
    assert "Name: p2pkv\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert "Requires-Dist: trio" in metadata
    assert not any(line.startswith("Requires-Dist: torch") and "extra" not in line for line in metadata.splitlines())
    assert "p2pkv = p2pkv.cli.main:main" in scripts
    assert licences


def run_elsewhere(unpacked: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder with the wheel's p2pkv in front of the installed one."""
    empty = folder / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("P2PKV_")}
    environment["PYTHONPATH"] = str(unpacked)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_simulator_runs_from_the_wheel_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    program = (
        "import sys, p2pkv, p2pkv.sim.world, p2pkv.mesh.members\n"
        "for module in (p2pkv, p2pkv.sim.world, p2pkv.mesh.members): print(module.__file__, file=sys.stderr)\n"
        "from p2pkv.cli.main import main\n"
        "sys.argv = ['p2pkv', 'sim', 'members', '--nodes', '5', '--seed', '1', '-o', 'json']\n"
        "main()\n"
    )
    done = run_elsewhere(unpacked, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr[-2000:]
    files = done.stderr.splitlines()[:3]
    assert files[0] == str(unpacked / "p2pkv" / "__init__.py")
    assert files[1:] == [str(unpacked / "p2pkv" / "sim" / "world.py"), str(unpacked / "p2pkv" / "mesh" / "members.py")]
    document = json.loads(done.stdout)
    assert document["seed"] == 1
    assert document["options"]["nodes"] == 5


def test_the_wheel_can_be_run_as_a_module(unpacked: Path, tmp_path: Path) -> None:
    done = run_elsewhere(unpacked, tmp_path, "-m", "p2pkv", "version", "-o", "json")
    assert done.returncode == 0, done.stderr[-2000:]
    import p2pkv

    assert json.loads(done.stdout)["version"] == p2pkv.__version__


def test_the_version_is_written_in_one_way(wheel: Path) -> None:
    import p2pkv

    assert wheel.name.startswith(f"p2pkv-{p2pkv.__version__}-")
