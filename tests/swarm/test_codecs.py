"""Real processes of a run that leaves its codec to measured rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.swarm.faults import assert_identical
from tests.swarm.swarm import Process, Swarm, assert_disjoint, assert_one_history, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow]
# 0.25 MB/s, for vectors of 0.26 MB with fp16 and half of that with int8. The codec changes once fp16 takes a tenth of an epoch,
# which is so in epochs of less than 9 s. Whoever joins fetches commits faster than they come in epochs of more than a second:
# two peers that draw at most 200 samples/s each take longer, however fast the machine.
SLOW = ("--max-upload", "2")
BATCH, PACE_S = 480, 0.02  # four samples


def test_replicas_stay_bit_identical_while_the_codec_changes_to_one_that_loses(tmp_path: Path) -> None:
    """And after that, while a peer is killed and another joins late. With int8, what rounding lost goes along later."""
    with Swarm(tmp_path, seed=23, batch=BATCH, codec="auto", faults=True, pace_s=PACE_S) as swarm:
        stays, doomed = swarm.start_peer("stays", *SLOW), swarm.start_peer("doomed", *SLOW)
        wait_until(lambda: _gave_with("int8", doomed, swarm), "slow lines to be given less to carry", 90)
        doomed.kill()
        late = swarm.start_peer("late", *SLOW)
        wait_until(lambda: _gave_with("int8", late, swarm), "a contribution of the late peer", 90)
        swarm.commits_by(late, late.epoch() + 2)
        wait_until(lambda: _loss_fell_by(swarm.coordinator) > 0.5, "the loss to fall", 60)
        everybody = [swarm.coordinator, stays, late, doomed]
        assert_disjoint(everybody)
        assert_one_history(everybody)
        assert_identical([stays.folder, doomed.folder, swarm.folder / "run" / "auxiliary"])
        assert_identical([stays.folder, late.folder])
        assert stays.events("committed")[0]["codec"] == "fp16", "auto begins with it"


def _gave_with(codec: str, peer: Process, swarm: Swarm) -> bool:
    assert peer.running, f"{peer.name} ended:\n{peer.tail()}"
    commits = [record for record in peer.events("committed") if record["codec"] == codec]
    return swarm.id_of(peer) in {c["peer"] for record in commits for c in record["contributors"]}


def _loss_fell_by(coordinator: Process) -> float:
    losses = [record["loss"] for record in coordinator.events("evaluated")]
    return float(losses[0] - losses[-1])
