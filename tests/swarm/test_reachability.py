"""A volunteer behind a router forgets --client-mode, and nobody is slowed by it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.namespaces import Hosts, NamespaceError
from tests.swarm.swarm import Swarm, free_port

pytestmark = [pytest.mark.swarm, pytest.mark.slow]


@contextlib.contextmanager
def mute_ports() -> Iterator[int]:
    """A port, and the next, that take connections and never answer."""
    with contextlib.ExitStack() as stack:
        port = free_port(2)
        for offset in range(2):
            stack.enter_context(socket.create_server(("127.0.0.1", port + offset), backlog=64))
        yield port


def seconds_an_epoch(commits: list[dict[str, Any]]) -> float:
    times = [record["time"] for record in commits]
    return statistics.median(after - before for before, after in itertools.pairwise(times))


@pytest.mark.parametrize("mute", [False, True], ids=["closed ports", "ports that never answer"])
def test_a_peer_that_nobody_reaches_goes_on_in_client_mode_and_slows_nobody(tmp_path: Path, mute: bool) -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(mute_ports()) if mute else free_port(2)
        swarm = stack.enter_context(Swarm(tmp_path, seed=21))
        first = swarm.start_peer("first")
        swarm.contributes(first)
        shut = swarm.start_peer("shut", "--announce", f"127.0.0.1:{port}")
        swarm.contributes(shut)
        (said,) = shut.events("unreachable")
        assert str(port) in said["problem"]
        began = first.epoch()
        swarm.commits_by(first, began + 6)
        commits = [record for record in first.events("committed") if record["epoch"] > began]
        print(f"{seconds_an_epoch(commits):.2f} s an epoch with it")
        assert {record["attempt"] for record in commits} == {1}
        assert all(len(record["contributors"]) == 2 for record in commits[1:])
        (joined,) = [record for record in swarm.coordinator.events("peer_joined") if record["name"] == "shut"]
        assert not joined["reachable"]


@pytest.mark.timeout(600)
def test_two_peers_that_cannot_reach_each_other_cost_an_attempt_and_then_slow_nobody(tmp_path: Path) -> None:
    """Packets between them vanish while connections stand; the coordinator's auxiliary peer reaches both."""
    hosts = Hosts(3)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hosts)
        except NamespaceError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        swarm = stack.enter_context(Swarm(tmp_path, seed=22, batch=384, host=hosts.addresses[0], under=hosts.inside(0)))
        north, south = (swarm.start_peer(name, under=hosts.inside(at)) for name, at in (("north", 1), ("south", 2)))
        for peer in (north, south):
            swarm.contributes(peer)
        swarm.commits_by(north, north.epoch() + 8)
        subprocess.run([*hosts.inside(1), "ip", "route", "add", "blackhole", f"{hosts.addresses[2]}/32"], check=True)
        cut = north.epoch()
        swarm.commits_by(north, cut + 14, limit_s=180.0)
        commits = north.events("committed")
        before = seconds_an_epoch([record for record in commits if cut - 8 < record["epoch"] <= cut])
        after = seconds_an_epoch([record for record in commits if record["epoch"] > cut + 2])
        retried = {record["epoch"]: record["attempt"] for record in commits if record["epoch"] > cut and record["attempt"] > 1}
        print(f"{before:.2f} s an epoch before, {after:.2f} s after; retried {retried}")
        assert retried and max(retried) <= cut + 2, "later epochs take one attempt each"
        assert after <= 1.1 * before + 0.1
        assert [*north.events("unreached"), *south.events("unreached")]
