"""The auxiliary peer's process, with a stand-in for the program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coordinator.auxiliary import AuxiliaryPeer


def test_the_snapshot_that_it_starts_from_outlives_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "training_state.safetensors"
    snapshot.write_bytes(b"state")
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdin.read()\nprint(open(sys.argv[-1], 'rb').read())\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    home = tmp_path / "home"
    auxiliary = AuxiliaryPeer("ticket", home, host="127.0.0.1", announce="127.0.0.1", port=0)
    auxiliary.start(snapshot)
    snapshot.unlink()  # retired before the child came to read it
    auxiliary.stop()
    assert (home / "output.log").read_text() == "b'state'\n"
    snapshot.write_bytes(b"newer")
    auxiliary.start(snapshot)
    auxiliary.stop()
    assert (home / "output.log").read_text() == "b'state'\nb'newer'\n"
