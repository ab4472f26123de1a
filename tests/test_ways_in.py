"""The container file, the systemd unit and the notebook: what can be checked of them without running them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "contrib" / "dugnad-peer.service"
NOTEBOOK = ROOT / "examples" / "notebook" / "join.ipynb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Keys that this unit uses and an older systemd ignores; the unit says so.
NEWER_KEYS = ("RestartSteps", "RestartMaxDelaySec")


def container_steps() -> list[tuple[str, str]]:
    """(instruction, arguments) of the container file, in its order."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def arguments_of(instruction: str) -> list[str]:
    return [rest for name, rest in container_steps() if name == instruction]


def copied_paths() -> list[str]:
    from_here = [shlex.split(rest) for rest in arguments_of("COPY") if not rest.startswith("--from=")]
    return [path for paths in from_here for path in paths[:-1]]


def test_what_the_container_copies_is_there_and_not_ignored() -> None:
    ignored, *kept = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    for path in copied_paths():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in kept, path


def test_the_container_copies_all_that_the_wheel_is_built_from() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    files = ["pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]]
    assert {*wheel, *files} <= set(copied_paths())


def test_the_container_installs_the_torch_that_dugnad_needs() -> None:
    (torch,) = (requirement for requirement in PROJECT["project"]["dependencies"] if requirement.startswith("torch=="))
    assert any(re.search(rf"TORCH_INDEX.* {re.escape(torch)}$", step) for step in arguments_of("RUN"))


def test_the_container_takes_a_python_that_dugnad_supports() -> None:
    default = next(rest.partition("=")[2] for rest in arguments_of("ARG") if rest.startswith("PYTHON="))
    assert PROJECT["project"]["requires-python"] == ">=3.10,<3.14"
    assert default in ("3.10", "3.11", "3.12", "3.13")


def test_the_container_runs_a_command_of_dugnad_as_a_user_and_stops_as_ctrl_c_does() -> None:
    last = dict(container_steps())
    entry, command = json.loads(last["ENTRYPOINT"]), json.loads(last["CMD"])  # the exec form: signals reach the peer itself
    assert entry[0] in PROJECT["project"]["scripts"]
    subprocess.run([sys.executable, "-m", *entry, command[0], "--help"], check=True, capture_output=True, timeout=60)
    assert last["STOPSIGNAL"] == "SIGINT"
    assert last["USER"] not in ("", "root", "0")
    assert f"DUGNAD_HOME={last['VOLUME']}" in last["ENV"]


def unit_settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_unit_keeps_the_ticket_off_the_command_line_and_stops_as_ctrl_c_does() -> None:
    settings = unit_settings()
    credential = settings["LoadCredential"].partition(":")[0]
    assert f"@%d/{credential}" in shlex.split(settings["ExecStart"])
    assert settings["KillSignal"] == "SIGINT" and settings["SuccessExitStatus"] == "130"
    assert settings["RestartPreventExitStatus"] == "2"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("%h/.local/bin/dugnad", sys.executable))
    verify = ["systemd-analyze", "verify", "--user", str(unit)]
    found = subprocess.run(
        verify, capture_output=True, text=True, timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, check=False
    )
    complaints = [line for line in found.stderr.splitlines() if unit.name in line and not any(key in line for key in NEWER_KEYS)]
    assert complaints == []
    assert found.returncode == 0, found.stderr


def notebook() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    return read


def test_the_notebook_is_one_and_holds_no_output() -> None:
    read = notebook()
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in read["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", it) for it in identifiers)
    for cell in read["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source", *code}
        assert not cell.get("outputs") and cell.get("execution_count") is None
