"""A ban while the run goes on: within seconds no door is open to the banned peer, it ends and says why, and the others go on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.swarm.swarm import Process, Swarm, run_dugnad, wait_until

pytestmark = pytest.mark.slow
HEEDED_S = 10.0


def ban(swarm: Swarm, peer: Process) -> float:
    """When the command was given, in Unix seconds."""
    began = time.time()
    banned = run_dugnad("coordinator", "ban", *of_run(swarm), swarm.id_of(peer)[:12])
    assert banned.stdout.strip() == swarm.id_of(peer), banned.stderr
    return began


def of_run(swarm: Swarm) -> tuple[str, ...]:
    return str(swarm.run_file), "--dir", str(swarm.folder / "run")


def heard_at(folder: Path) -> float:
    """When the peer that lives in `folder` heard of a ban, in Unix seconds; 0 if it has not."""
    heard = [event for event in Logged(folder).events("bans") if event["count"]]
    return float(heard[-1]["time"]) if heard else 0.0


class Logged:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    events = Process.events


def test_a_banned_peer_is_out_within_ten_seconds_and_comes_back_when_it_may(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=71) as swarm:
        ann, bob = swarm.start_peer("ann", "--client-mode"), swarm.start_peer("bob")
        for peer in (ann, bob):
            swarm.contributes(peer)
        admitted = {(event["peer"], event["invite"]) for event in swarm.coordinator.events("admitted")}
        assert {(swarm.id_of(ann), "open"), (swarm.id_of(bob), "open")} <= admitted
        began = ban(swarm, bob)
        folders = {"ann": ann.folder, "bob": bob.folder, "the auxiliary peer": swarm.folder / "run" / "auxiliary"}
        wait_until(lambda: all(map(heard_at, folders.values())), "everybody to hear of it", HEEDED_S)
        took = {name: heard_at(folder) - began for name, folder in folders.items()}
        print("seconds after the command: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in took.items()))
        assert max(took.values()) < HEEDED_S
        wait_until(lambda: not bob.running, "bob to end", 30.0)
        assert "does not let this peer take part" in bob.tail() and "Traceback" not in bob.tail()
        epoch = ann.epoch()
        swarm.commits_by(ann, epoch + 4)
        later = [event for event in ann.events("committed") if event["epoch"] > epoch + 1]
        assert not any(swarm.id_of(bob) in event["members"] for event in later)
        again = run_dugnad("peer", swarm.ticket, "--home", str(bob.folder), "--yes", limit_s=60.0)
        assert again.returncode == 2 and "does not let this peer take part" in again.stderr
        assert run_dugnad("coordinator", "unban", *of_run(swarm), swarm.id_of(bob)[:12]).returncode == 0
        swarm.contributes(swarm.start_peer("bob"))


def test_a_ban_goes_on_spreading_after_the_coordinator_has_stopped(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=72) as swarm:
        ann, bob, carl = (swarm.start_peer(name) for name in ("ann", "bob", "carl"))
        for peer in (ann, bob, carl):
            swarm.contributes(peer)
        carl.send(signal.SIGSTOP)
        ban(swarm, bob)
        wait_until(lambda: heard_at(ann.folder), "ann to hear of it", HEEDED_S)
        swarm.coordinator.end()
        assert not heard_at(carl.folder)
        carl.send(signal.SIGCONT)
        began = time.time()
        wait_until(lambda: heard_at(carl.folder), "carl to hear of it", HEEDED_S)
        print(f"{heard_at(carl.folder) - began:.1f} s after carl went on")
        assert carl.events("bans")[-1]["source"] == swarm.id_of(ann)
        swarm.commits_by(carl, ann.epoch() + 3, 90.0)
        assert swarm.id_of(bob) not in carl.events("committed")[-1]["members"]
