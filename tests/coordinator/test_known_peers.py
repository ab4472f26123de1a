"""Whom a coordinator names to newcomers, with announcements that somebody plays again."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.known_peers import DISCOVERY_PEERS, MAX_KNOWN, KnownPeers
from protocols.transport.announcements import ANNOUNCEMENT_S, Announcement

WAY = "/ip4/192.0.2.1/tcp/4242/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
ANN = Announcement("ab" * 16, 7, "192.0.2.1:1", "ann", False, (WAY,), 3)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> KnownPeers:
    return KnownPeers(clock)


def addresses(known: KnownPeers) -> list[str]:
    return [candidate.address for candidate in known.candidates()]


def test_the_newest_announcement_holds_whatever_comes_after_it(known: KnownPeers) -> None:
    known.add(ANN)
    known.add(dataclasses.replace(ANN, number=2, address="192.0.2.9:9"))
    known.add(dataclasses.replace(ANN, incarnation=6, number=99, address="192.0.2.9:9"))
    assert addresses(known) == ["192.0.2.1:1"]
    known.add(dataclasses.replace(ANN, number=4, address="192.0.2.2:2"))
    assert addresses(known) == ["192.0.2.2:2"]
    known.add(dataclasses.replace(ANN, incarnation=8, number=1, address="192.0.2.3:3"))
    assert addresses(known) == ["192.0.2.3:3"]


def test_a_dead_peers_announcement_that_is_played_again_does_not_bring_it_back(known: KnownPeers, clock: Clock) -> None:
    known.add(ANN)
    for _ in range(10):
        clock.now += ANNOUNCEMENT_S / 2
        known.add(ANN)
    assert known.candidates() == [] and known.discovery() == [] and known.names() == {}
    known.add(dataclasses.replace(ANN, number=4))
    assert addresses(known) == [ANN.address]


def test_a_bounded_number_is_kept_and_whoever_was_heard_last_stays(known: KnownPeers) -> None:
    known.add(ANN)
    for number in range(MAX_KNOWN - 1):
        known.add(dataclasses.replace(ANN, peer=f"{number:032x}", address=""))
    known.add(dataclasses.replace(ANN, number=4))
    for number in range(100):
        known.add(dataclasses.replace(ANN, peer=f"f{number:031x}"))
    assert len(known.candidates()) == 101 and len(known.names()) == MAX_KNOWN
    assert ANN.peer in known.names()
    assert len(known.discovery()) == DISCOVERY_PEERS
