"""`dugnad pause` and `dugnad resume`: a peer leaves the round cleanly, the others go on, and it takes part again."""

from __future__ import annotations

import signal
from datetime import datetime
from pathlib import Path

import pytest

from tests.swarm.swarm import Process, Swarm, assert_disjoint, assert_one_history, run_dugnad, wait_until

NOW = datetime.now()
FAR_AWAY = f"{(NOW.hour + 12) % 24}:00-{(NOW.hour + 12) % 24}:01"
pytestmark = [pytest.mark.swarm, pytest.mark.slow]


def takes_part(swarm: Swarm, peer: Process, watcher: Process, after: int) -> bool:
    me, commits = swarm.id_of(peer), [record for record in watcher.events("committed") if record["epoch"] > after]
    return any(me in {c["peer"] for c in record["contributors"]} for record in commits)


@pytest.mark.parametrize("by", ["command", "signal"])
def test_a_paused_peer_leaves_cleanly_and_takes_part_again_when_it_is_told(tmp_path: Path, by: str) -> None:
    with Swarm(tmp_path, seed=51) as swarm:
        stays, pauses = swarm.start_peer("stays"), swarm.start_peer("pauses")
        for peer in (stays, pauses):
            swarm.contributes(peer)
        if by == "command":
            assert run_dugnad("pause", "--home", str(pauses.folder), "--for", "2h").returncode == 0
        else:
            pauses.send(signal.SIGUSR1)
        wait_until(lambda: pauses.events("waiting"), "the pause")
        assert "you paused it" in pauses.events("waiting")[-1]["why"]
        began = stays.epoch()
        swarm.commits_by(stays, began + 3)
        assert pauses.running and not takes_part(swarm, pauses, stays, began + 1)
        assert not stays.events("attempt_failed"), "nobody waited for it"
        if by == "command":
            assert run_dugnad("resume", "--home", str(pauses.folder)).returncode == 0
        else:
            pauses.send(signal.SIGUSR2)
        resumed = stays.epoch()
        wait_until(lambda: takes_part(swarm, pauses, stays, resumed), "its next contribution")
        pauses.send(signal.SIGINT)
        pauses.wait()
        assert "Left the run" in pauses.tail()
        assert_disjoint([swarm.coordinator, stays, pauses])
        assert_one_history([swarm.coordinator, stays, pauses])


def test_a_paused_peer_can_be_told_to_leave(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=52) as swarm:
        peer = swarm.start_peer("peer", "--hours", FAR_AWAY)
        wait_until(lambda: peer.events("waiting"), "the pause")
        assert "outside its hours" in peer.tail()
        peer.send(signal.SIGINT)
        peer.wait()
        assert "Left the run" in peer.tail()
