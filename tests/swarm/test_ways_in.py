"""Ways in, as their users take them: an installed wheel, the notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.swarm.swarm import REPOSITORY, Swarm, as_json
from tests.test_ways_in import notebook

pytestmark = [pytest.mark.swarm, pytest.mark.slow]

TOP = {"peer", "coordinator", "protocols", "examples", "dugnad.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip install .` builds it: with the build backend that pip fetches."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, timeout=170)
    (built,) = folder.glob("dugnad-*.whl")
    return built


def test_the_wheel_holds_the_packages_with_their_files_and_nothing_else(wheel: Path) -> None:
    held = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in held} == TOP
    tracked = subprocess.run(["git", "ls-files", *TOP], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert set(held) == set(tracked.stdout.split())


def test_what_the_wheel_requires_is_what_dugnad_is_tested_with(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    required = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    needed = [it for it in required if it.marker is None or it.marker.evaluate({"extra": ""})]
    assert len(needed) > 20
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    for requirement in needed:
        assert requirement.specifier.contains(version(requirement.name)), requirement
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.timeout(700)
def test_an_installed_wheel_runs_the_demo_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """The environment is empty but for the wheel, installed without its dependencies. A path file lends it those of the
    environment that runs the tests, since torch takes minutes to install: the test above checks that they are what the wheel
    requires."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True,
        timeout=120,
    )
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str, limit_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )

    where = "import coordinator, dugnad, peer, protocols; print(*(it.__file__ for it in (coordinator, dugnad, peer, protocols)))"
    found = run(str(python), "-c", where, limit_s=60).stdout.split()
    assert len(found) == 4 and all(Path(it).is_relative_to(site) for it in found), found
    demo = run(str(home / "bin" / "dugnad"), "demo", "--dir", str(elsewhere / "demo"), "--json", limit_s=640)
    assert demo.returncode == 0, demo.stderr[-3000:]
    summary = as_json(demo.stdout)
    assert summary["loss_last"] < summary["loss_unigram"] < summary["loss_first"]
    assert Path(summary["checkpoint"]).is_relative_to(elsewhere)


@pytest.mark.timeout(400)
def test_the_notebooks_cells_join_a_run_and_leave_it(tmp_path: Path) -> None:
    """Its code cells one after the other in one namespace, as a kernel runs them; but for the one that installs."""
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in cells if "install" in cell["metadata"].get("tags", ())] == ["install"]
    script = "\n".join(cell["source"] for cell in cells if cell["id"] != "install")
    with Swarm(tmp_path, seed=43) as swarm:
        swarm.start_peer("settled")
        own_text = f'OPTIONS += ["--data", {str(tmp_path / "text" / "*.txt")!r}]'
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "own.txt").write_text((REPOSITORY / "README.md").read_text())
        start = 'OPTIONS = ["--name", "notebook", "--client-mode"]\n'
        assert start in script
        ran = subprocess.run(
            [sys.executable, "-c", script.replace(start, f"{start}{own_text}\n")],
            env={**os.environ, "DUGNAD_TICKET": swarm.ticket, "DUGNAD_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Your first contribution is in" in ran.stdout
    assert ran.stdout.rstrip().endswith("exit code 130")
