"""A ban while the run goes on: the banned peer ends and says why, the other goes on; and it may come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.swarm.swarm import Swarm, run_dugnad, wait_until

pytestmark = pytest.mark.slow
HEEDED_S = 40.0  # peers hear of it when they next announce themselves


def test_a_banned_peer_ends_with_the_reason_and_comes_back_when_it_may(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=71) as swarm:
        ann, bob = swarm.start_peer("ann"), swarm.start_peer("bob")
        for peer in (ann, bob):
            swarm.contributes(peer)
        run = (str(swarm.run_file), "--dir", str(swarm.folder / "run"))
        banned = run_dugnad("coordinator", "ban", *run, swarm.id_of(bob)[:12])
        assert banned.stdout.strip() == swarm.id_of(bob), banned.stderr
        wait_until(lambda: not bob.running, "bob to end", HEEDED_S)
        assert "does not let this peer take part" in bob.tail() and "Traceback" not in bob.tail()
        swarm.commits_by(ann, ann.epoch() + 3)
        again = run_dugnad("peer", swarm.ticket, "--home", str(bob.folder), "--yes", limit_s=60.0)
        assert again.returncode == 2 and "does not let this peer take part" in again.stderr
        assert run_dugnad("coordinator", "unban", *run, swarm.id_of(bob)[:12]).returncode == 0
        swarm.contributes(swarm.start_peer("bob"))
