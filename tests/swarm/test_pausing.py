"""`dugnad pause` and `dugnad resume`: a peer leaves the round cleanly, the others go on, and it takes part again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.swarm.swarm import Process, Swarm, assert_disjoint, assert_one_history, run_dugnad, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow]


def takes_part(swarm: Swarm, peer: Process, watcher: Process, after: int) -> bool:
    me, commits = swarm.id_of(peer), [record for record in watcher.events("committed") if record["epoch"] > after]
    return any(me in {c["peer"] for c in record["contributors"]} for record in commits)


def test_a_paused_peer_leaves_cleanly_takes_part_again_when_told_and_can_be_stopped_meanwhile(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=51) as swarm:
        stays, pauses = swarm.start_peer("stays"), swarm.start_peer("pauses")
        for peer in (stays, pauses):
            swarm.contributes(peer)
        pauses.send(signal.SIGUSR1)
        wait_until(lambda: pauses.events("waiting"), "the pause")
        assert "you paused it" in pauses.events("waiting")[-1]["why"]
        began = stays.epoch()
        swarm.commits_by(stays, began + 3)
        assert pauses.running and not takes_part(swarm, pauses, stays, began + 1)
        assert not stays.events("attempt_failed"), "nobody waited for it"

        assert run_dugnad("resume", "--home", str(pauses.folder)).returncode == 0
        resumed = stays.epoch()
        wait_until(lambda: takes_part(swarm, pauses, stays, resumed), "its next contribution")

        assert run_dugnad("pause", "--home", str(pauses.folder), "--for", "2h").returncode == 0
        wait_until(lambda: len(pauses.events("waiting")) == 2, "the second pause")
        assert "until" in pauses.events("waiting")[-1]["why"]
        pauses.send(signal.SIGINT)
        pauses.wait()
        assert "Left the run" in pauses.tail()
        assert_disjoint([swarm.coordinator, stays, pauses])
        assert_one_history([swarm.coordinator, stays, pauses])
