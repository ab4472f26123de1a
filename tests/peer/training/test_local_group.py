"""Processes of one peer, as torchrun starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peer import ranks
from protocols.errors import UsageError

LIMIT_S = 120.0
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one_with_all_their_samples(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = ["-m", "tests.peer.training.two_ranks", str(tmp_path)]
    done = subprocess.run([*torchrun, *program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    assert said["found"] == pytest.approx(said["expected"], rel=1e-5)
    assert said["off"] < 1e-5
    assert said["rest"] == 0.0, "what was gathered once is not gathered again"


def test_a_group_over_several_computers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="several computers"):
        ranks.rank()


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.rank(), ranks.size()) == (0, 1)
