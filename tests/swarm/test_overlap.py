"""Real processes of a run that overlaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.swarm.faults import assert_identical
from tests.swarm.swarm import Process, Swarm, assert_disjoint, assert_one_history

pytestmark = [pytest.mark.swarm, pytest.mark.slow]
EPOCHS = 12


def test_training_goes_on_while_a_round_is_under_way(tmp_path: Path) -> None:
    """What was drawn at the parameters before a commit is averaged after it, and replicas stay bit-identical."""
    with Swarm(tmp_path, seed=22, batch=240, max_epochs=EPOCHS, overlap=True, faults=True) as swarm:
        peers = [swarm.start_peer(f"peer-{number}") for number in range(2)]
        assert swarm.coordinator.wait(240) == 0, swarm.coordinator.tail()
        assert [peer.wait(60) for peer in peers] == [0, 0], "\n".join(peer.tail() for peer in peers)
        everybody = [swarm.coordinator, *peers]
        assert_disjoint(everybody)
        assert_one_history(everybody)
        assert_identical([peer.folder for peer in peers] + [swarm.folder / "run" / "auxiliary"])
        drawn = [_drawn_while_giving(peer) for peer in peers]
        assert all(drawn), f"micro-batches drawn while an exchange ran that they gave to: {drawn}; without overlap there are none"
        contributors = [(record, c) for record in swarm.coordinator.events("committed") for c in record["contributors"]]
        assert any(c["base"] != record["parent"] for record, c in contributors), "gradients are one step stale"
        evaluated = swarm.coordinator.events("evaluated")
        assert evaluated[-1]["epoch"] == EPOCHS
        # The lowest, since with gradients one step stale this learning rate overshoots in a few epochs.
        assert min(record["loss"] for record in evaluated) < evaluated[0]["loss"] - 0.5


def _drawn_while_giving(peer: Process) -> int:
    lines = [json.loads(line) for line in (peer.folder / "exchanges.jsonl").read_text().splitlines()]
    return sum(int(line["micro_batches"]) for line in lines if line["gives"])
