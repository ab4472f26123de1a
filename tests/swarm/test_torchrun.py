"""Two processes of one computer, started by torchrun, are one peer of the swarm."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.swarm.swarm import Swarm, assert_disjoint, assert_one_history, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")


def test_two_processes_contribute_as_one_peer_and_leave_together_at_ctrl_c(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=41) as swarm:
        alone = swarm.start_peer("alone")
        swarm.contributes(alone)
        pair = swarm.start_peer("pair", under=TORCHRUN)
        swarm.contributes(pair, alone)
        swarm.commits_by(alone, alone.epoch() + 3)
        me = swarm.id_of(pair)
        given = [c for record in alone.events("committed") for c in record["contributors"] if c["peer"] == me]
        assert all((c["end"] - c["first"]) % 8 == 0 for c in given), "both draw 4 samples at a time"
        pair.send(signal.SIGINT)
        pair.wait()
        assert "Left the run" in pair.output.read_text()
        swarm.commits_by(alone, alone.epoch() + 2)
        wait_until(lambda: not any(child.is_running() for child in pair.family()), "both processes to end")
        assert_disjoint([alone, pair])
        assert_one_history([alone, pair])
