"""Real processes that train together, and one after the other leave the hard way."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM

from protocols.errors import RefusedError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.snapshot.format import read_header
from protocols.transport.whereabouts import ask
from tests.swarm.swarm import (
    Process,
    Swarm,
    address_of,
    as_json,
    assert_disjoint,
    assert_one_history,
    free_port,
    run_dugnad,
    wait_until,
)

pytestmark = pytest.mark.swarm


def test_a_coordinator_and_three_peers_train_to_the_end_and_the_loss_falls(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=11, batch=960, max_epochs=12) as swarm:  # long enough epochs for all to join
        peers = [swarm.start_peer(f"peer-{number}") for number in range(3)]
        assert swarm.coordinator.wait(120) == 0, swarm.coordinator.tail()
        assert [peer.wait(30) for peer in peers] == [0, 0, 0], "\n".join(peer.tail() for peer in peers)
        evaluated = swarm.coordinator.events("evaluated")
        assert evaluated[0]["epoch"] == 0 and evaluated[-1]["epoch"] == 12
        assert evaluated[-1]["loss"] < evaluated[0]["loss"] - 0.5
        written = swarm.coordinator.events("checkpoint_written")[-1]
        assert AutoModelForCausalLM.from_pretrained(written["path"]).num_parameters() > 0
        assert_disjoint([swarm.coordinator, *peers])
        assert_one_history([swarm.coordinator, *peers])


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_a_swarm_trains_over_ipv6_alone(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=24, host="::1") as swarm:
        port = free_port()
        dialled = swarm.start_peer("dialled", "--announce", f"[::1]:{port}", "--port", str(port))
        peers = [dialled, swarm.start_peer("hidden", "--client-mode")]
        for peer in peers:
            swarm.contributes(peer)
        swarm.commits_by(swarm.coordinator, 3)
        assert_one_history([swarm.coordinator, *peers])
        everybody = [psutil.Process(process.pid) for process in (swarm.coordinator, *peers)]
        everybody += [child for process in (swarm.coordinator, *peers) for child in process.family()]
        by_ipv4 = [connection for process in everybody for connection in process.net_connections("tcp4")]
        assert not by_ipv4 and dialled.events("committed")


@pytest.mark.slow
def test_survivors_commit_after_a_contributor_the_coordinator_and_the_next_leader_are_killed(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=12) as swarm:
        peers = [swarm.start_peer(f"peer-{number}") for number in range(4)]
        for peer in peers:
            swarm.contributes(peer)
        victim, *rest = peers

        victim.kill()
        at = max(peer.epoch() for peer in rest)
        swarm.commits_by(rest[0], at + 2, 30)
        last = rest[0].events("committed")[-1]
        assert swarm.id_of(victim) not in {c["peer"] for c in last["contributors"]}

        # The leader is the coordinator's auxiliary peer; it goes with the coordinator.
        first_leader = last["leader"]
        swarm.coordinator.kill()
        at = max(peer.epoch() for peer in rest)
        swarm.commits_by(rest[0], at + 2, 30)
        second_leader = rest[0].events("committed")[-1]["leader"]
        assert second_leader != first_leader

        # Whoever has taken part can still ask how the swarm stands.
        def view() -> dict[str, Any] | None:
            seen = run_dugnad("status", "--home", str(rest[0].folder), "--json")
            return as_json(seen.stdout) if seen.returncode == 0 else None

        found = wait_until(view, "an answer of the peers that it knows", 90)
        assert found["epoch"] >= at and found["loss"] > 0

        (leader,) = [peer for peer in rest if swarm.id_of(peer) == second_leader]
        survivors = [peer for peer in rest if peer is not leader]
        leader.kill()
        at = max(peer.epoch() for peer in survivors)
        for survivor in survivors:
            swarm.commits_by(survivor, at + 2, 30)
        assert survivors[0].events("committed")[-1]["leader"] not in (first_leader, second_leader)

        # The coordinator comes back on the same port: the old ticket holds, it finds the swarm, and a newcomer can join.
        swarm.coordinator = swarm.start_coordinator()
        at = survivors[0].epoch()
        newcomer = swarm.start_peer("newcomer")
        swarm.contributes(newcomer)
        swarm.commits_by(swarm.coordinator, at + 1, 60)
        logs = [swarm.coordinator, *peers, newcomer]
        assert_disjoint(logs)
        assert_one_history(logs)


@pytest.mark.slow
def test_the_auxiliary_peer_that_leads_is_replaced_when_it_dies_and_does_not_displace_its_successor(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=13) as swarm:
        peers = [swarm.start_peer(f"peer-{number}") for number in range(2)]
        for peer in peers:
            swarm.contributes(peer)
        first_leader = peers[0].events("committed")[-1]["leader"]
        auxiliary = next(c for c in swarm.coordinator.family() if "auxiliary" in c.cmdline())
        auxiliary.send_signal(signal.SIGKILL)
        at = max(peer.epoch() for peer in peers)
        swarm.commits_by(peers[0], at + 2, 30)
        wait_until(lambda: swarm.coordinator.events("auxiliary_restarted"), "the auxiliary peer to be restarted")
        wait_until(lambda: first_leader in {member for peer in peers for member in _last_members(peer)}, "its return", 60)
        swarm.commits_by(peers[0], peers[0].epoch() + 2, 30)
        assert peers[0].events("committed")[-1]["leader"] != first_leader
        assert_disjoint([swarm.coordinator, *peers])
        assert_one_history([swarm.coordinator, *peers])


def _last_members(peer: Process) -> list[str]:
    planned = peer.events("planned")
    return list(planned[-1]["members"]) if planned else []


@pytest.mark.slow
def test_a_late_joiner_is_bit_identical_to_the_others_once_it_has_contributed(tmp_path: Path) -> None:
    # Epochs are long enough for two snapshots to be taken in one.
    with Swarm(tmp_path, seed=14, codec="fp16", batch=1536) as swarm:
        early = swarm.start_peer("early")
        swarm.commits_by(early, 4, 90)
        late = swarm.start_peer("late")
        swarm.contributes(late)

        def at_one_lineage() -> tuple[bytes, bytes] | None:
            ours, theirs = swarm.snapshot_of(early), swarm.snapshot_of(late)
            return (ours, theirs) if read_header(ours).lineage == read_header(theirs).lineage else None

        ours, theirs = wait_until(at_one_lineage, "both at one lineage")
        assert read_header(ours).scheduler == read_header(theirs).scheduler
        assert ours == theirs, "parameters, optimizer state and learning rate are the same bytes"


def test_a_swarm_of_client_mode_peers_trains_through_the_coordinators_auxiliary_peer(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=15) as swarm:
        peers = [swarm.start_peer(f"hidden-{number}", "--client-mode") for number in range(2)]
        for peer in peers:
            swarm.contributes(peer)
        swarm.commits_by(peers[0], peers[0].epoch() + 2)
        both = [c for c in peers[0].events("committed") if len(c["contributors"]) == 2]
        assert both, "some epoch has contributions of both"
        hidden = [record for record in swarm.coordinator.events("peer_joined") if "hidden" in record["name"]]
        assert hidden and not any(record["reachable"] for record in hidden)

        seen = run_dugnad("status", swarm.ticket, "--json")
        assert seen.returncode == 0, seen.stderr
        view = as_json(seen.stdout)
        assert view["target_batch_size"] == 192 and view["epoch"] >= 2
        assert view["problems"] == [], view
        could = sum(peer["samples_per_second"] for peer in view["peers"])
        assert 0 < view["committed_samples_per_second"] < 2 * could, "no more is committed than is computed"
        assert {peer["name"]: peer["role"] for peer in view["peers"]} == {
            "auxiliary": "auxiliary",
            "hidden-0": "contributor",
            "hidden-1": "contributor",
        }


@pytest.mark.slow
def test_client_mode_peers_bring_their_state_to_a_coordinator_that_starts_again_from_an_older_checkpoint(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=19) as swarm:
        peers = [swarm.start_peer(f"hidden-{number}", "--client-mode") for number in range(2)]
        for peer in peers:
            swarm.contributes(peer)
        swarm.commits_by(peers[0], 6)
        swarm.coordinator.kill()  # and with it the only peer that anybody can connect to: the swarm pauses
        wait_until(lambda: peers[0].events("paused") and peers[1].events("paused"), "the swarm to say that it pauses", 60)
        at = max(peer.epoch() for peer in peers)
        swarm.coordinator = swarm.start_coordinator()
        for peer in peers:
            swarm.commits_by(peer, at + 2, 60)
        assert_one_history(peers)
        assert_disjoint([swarm.coordinator, *peers])


def test_ctrl_c_leaves_cleanly_and_the_others_go_on(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=16) as swarm:
        stays, leaves = swarm.start_peer("stays"), swarm.start_peer("leaves")
        for peer in (stays, leaves):
            swarm.contributes(peer)
        joined = swarm.coordinator.events
        wait_until(lambda: "leaves" in {record["name"] for record in joined("peer_joined")}, "the coordinator to see it", 30)
        leaves.send(signal.SIGINT)
        assert leaves.wait(30) == 130, leaves.tail()
        assert "Left the run" in leaves.tail()
        swarm.commits_by(stays, stays.epoch() + 2, 30)
        gone = wait_until(lambda: swarm.coordinator.events("peer_left"), "the coordinator to write down who left", 30)
        assert [(record["name"], record["reason"]) for record in gone] == [("leaves", Reason.LEFT.value)]

        swarm.coordinator.send(signal.SIGINT)
        swarm.coordinator.send(signal.SIGINT)
        assert swarm.coordinator.wait(5) == 130, "the second Ctrl-C ends it at once"
        swarm.commits_by(stays, stays.epoch() + 2, 30)


def test_a_run_resumes_from_its_checkpoint_after_everybody_stopped(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=17) as swarm:
        peer = swarm.start_peer("first")
        swarm.commits_by(swarm.coordinator, 5, 90)
        swarm.coordinator.send(signal.SIGINT)
        assert swarm.coordinator.wait(60) == 130, swarm.coordinator.tail()
        peer.kill()
        kept = swarm.coordinator.events("checkpoint_written")[-1]["epoch"]
        assert kept >= 4

        other = tmp_path / "other.toml"
        other.write_text(swarm.run_file.read_text().replace("seed = 17", "seed = 18"))
        refused = run_dugnad("coordinator", str(other), "--dir", str(tmp_path / "run"))
        assert refused.returncode == 2 and "a run's spec never changes" in refused.stderr

        swarm.coordinator = swarm.start_coordinator()
        again = swarm.start_peer("second")
        swarm.contributes(again)
        resumed = swarm.coordinator.events("run_resumed")
        assert [record["epoch"] for record in resumed] == [kept]
        assert min(record["epoch"] for record in again.events("committed")) > kept


def test_a_peer_of_another_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=18) as swarm:
        peer = swarm.start_peer("peer")
        swarm.commits_by(peer, 1, 90)
        there = Candidate(swarm.id_of(peer), address_of(peer))
        with pytest.raises(RefusedError) as refusal:
            swarm.call(lambda transport: ask(transport, there), run_digest="f" * 64)
        assert refusal.value.reason == Reason.OTHER_RUN.value
        assert "ffffffffffff" in str(refusal.value)
