"""A volunteer at home, behind a router that hides the computer and forwards ports on request."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from tests.swarm.home import Home
from tests.swarm.swarm import Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow]


@pytest.mark.parametrize("speaks", ["NAT-PMP", "UPnP"])
def test_a_peer_behind_a_router_is_reached_follows_a_move_and_leaves_no_port_open(tmp_path: Path, speaks: str) -> None:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(Home(speaks, tmp_path))
        swarm = stack.enter_context(Swarm(tmp_path, seed=23, host=home.coordinator_address, under=home.coordinator))
        wait_until(lambda: swarm.coordinator.events("peer_joined"), "the auxiliary peer, which dials back")
        peer = swarm.start_peer("at home", under=home.computer)
        swarm.contributes(peer)
        (mapped,) = peer.events("port_mapping")
        assert (mapped["host"], mapped["by"]) == (home.router_address, speaks)
        table = home.forwarded()
        assert sorted(table) == sorted((mapped["port"], mapped["bulk_port"]))
        assert {(entry[0], entry[2]) for entry in table.values()} == {(home.computer_address, 3600)}
        (joined,) = [record for record in swarm.coordinator.events("peer_joined") if record["name"] == "at home"]
        assert joined["reachable"] and not peer.events("unreachable")

        new = home.move()
        wait_until(lambda: peer.events("moved"), "it to notice", 20)
        wait_until(lambda: home.is_forwarded_to(new), "the ports to be forwarded there", 20)
        swarm.commits_by(swarm.coordinator, peer.epoch() + 3)
        assert not peer.events("leader_lost")

        peer.send(signal.SIGINT)
        peer.wait()
        assert not home.is_forwarded_to(new)


def test_a_peer_whose_router_forwards_nothing_is_reached_by_ipv6(tmp_path: Path) -> None:
    """The coordinator's own address is one of IPv4."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(Home("", tmp_path, ipv6=True))
        swarm = stack.enter_context(Swarm(tmp_path, seed=25, host=home.coordinator_address, under=home.coordinator))
        wait_until(lambda: swarm.coordinator.events("peer_joined"), "the auxiliary peer, which dials back")
        peer = swarm.start_peer("at home", under=home.computer)
        swarm.contributes(peer)
        assert peer.events("reachable") and not peer.events("unreachable")
        (joined,) = [record for record in swarm.coordinator.events("peer_joined") if record["name"] == "at home"]
        assert joined["reachable"]


@pytest.mark.parametrize("options", [(), ("--no-port-mapping",)], ids=["a router that answers nothing", "forbidden"])
def test_otherwise_it_takes_part_in_client_mode(tmp_path: Path, options: tuple[str, ...]) -> None:
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(Home("UPnP" if options else "", tmp_path))
        swarm = stack.enter_context(Swarm(tmp_path, seed=24, host=home.coordinator_address, under=home.coordinator))
        wait_until(lambda: swarm.coordinator.events("peer_joined"), "the auxiliary peer, which dials back")
        peer = swarm.start_peer("at home", *options, under=home.computer)
        swarm.contributes(peer)
        assert peer.events("unreachable") and home.forwarded() == {}
        said = [record["problem"] for record in peer.events("port_mapping")]
        assert said == ([] if options else ["no router answers to NAT-PMP or UPnP"])
