"""What may be announced: everything within bounds, and by the peer itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from protocols.errors import BadMessageError
from protocols.identity import Authority
from protocols.transport.announcements import (
    MAX_ADDRESSES,
    MAX_NAME,
    MAX_RECORD_BYTES,
    Announcement,
    is_node_address,
    printable,
    read_announcement,
    sign_announcement,
    usable_addresses,
)
from protocols.wire import dugnad_pb2 as pb
from tests import factories

NODE = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
WAY = f"/ip4/192.0.2.1/tcp/4242/p2p/{NODE}"
PLAIN = Announcement("ab" * 16, 1, "192.0.2.1:4243", "ann", False, (WAY,), 1, 1_800_000_000_000)

GARBAGE = (
    "",
    "garbage",
    "/",
    "/ip4/192.0.2.1/tcp/4242",
    f"/ip4/192.0.2.300/tcp/4242/p2p/{NODE}",
    f"/ip6/192.0.2.1/tcp/4242/p2p/{NODE}",
    f"/ip4/192.0.2.1/tcp/0/p2p/{NODE}",
    f"/ip4/192.0.2.1/tcp/70000/p2p/{NODE}",
    f"/ip4/192.0.2.1/udp/4242/quic/p2p/{NODE}",
    f"/ip4/192.0.2.1/tcp/4242/p2p/{NODE[:-1]}",
    f"/ip4/192.0.2.1/tcp/4242/p2p/Qmzzz{NODE[5:]}",
    f"/ip4/192.0.2.1/tcp/4242/p2p/{NODE}/p2p-circuit",
    f"/ip6/fe80::1%eth0/tcp/4242/p2p/{NODE}",
    f"/dns4/a,b/tcp/4242/p2p/{NODE}",
    f"/dns4/{'a.' * 200}/tcp/4242/p2p/{NODE}",
    f"/ip4/192.0.2.1/tcp/4242/p2p/{NODE}\n",
    f"/unix/tmp/socket/p2p/{NODE}",
)


@pytest.mark.parametrize("text", GARBAGE)
def test_what_is_no_nodes_address_is_passed_over_and_announced_by_nobody(text: str) -> None:
    assert not is_node_address(text)
    assert usable_addresses([text, WAY, text], 8) == (WAY,)
    with pytest.raises(ValueError, match="DHT node"):
        dataclasses.replace(PLAIN, discovery=(text,))


@pytest.mark.parametrize(
    "way", ["/ip6/2001:db8::1", "/dns4/example.org", "/dns6/example.org", "/dns/my_host.example", "/ip4/10.0.0.1"]
)
def test_nodes_are_found_by_address_and_by_name(way: str) -> None:
    assert is_node_address(f"{way}/tcp/65535/p2p/{NODE}")


def test_of_many_addresses_a_few_are_kept_and_those_of_this_machine_alone_come_last() -> None:
    here = f"/ip4/127.0.0.1/tcp/1/p2p/{NODE}"
    many = [here, *(f"/ip4/192.0.2.{number}/tcp/1/p2p/{NODE}" for number in range(100))]
    assert usable_addresses([here, WAY, WAY], 8) == (WAY, here)
    assert len(usable_addresses(many, 5)) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"peer": "ab"},
        {"peer": "AB" * 16},
        {"incarnation": 1 << 63},
        {"number": 1 << 63},
        {"address": "192.0.2.1"},
        {"address": "192.0.2.1:0"},
        {"address": "192.0.2.1:99999"},
        {"address": "a b:1"},
        {"address": "x" * 300 + ":1"},
        {"name": "n" * (MAX_NAME + 1)},
        {"name": "\x1b]52;c;cm0=\x07"},
        {"discovery": (WAY,) * (MAX_ADDRESSES + 1)},
    ],
)
def test_no_field_leaves_its_bounds(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        dataclasses.replace(PLAIN, **change)


def test_a_hostile_announcement_is_refused_as_a_whole(authority: Authority) -> None:
    mine = factories.admitted(authority)
    body = pb.Announcement(peer=mine.peer_id, incarnation=1, name="\n" * 10, discovery=["garbage"]).SerializeToString()
    signature = mine.key.sign(b"dugnad announcement " + body)
    signed = pb.SignedAnnouncement(announcement=body, signature=signature, certificate=mine.certificate)
    with pytest.raises(BadMessageError, match="printable"):
        read_announcement(signed.SerializeToString(), authority.pem)


def test_an_announcement_is_read_as_it_was_signed_and_only_by_its_own_peer(authority: Authority) -> None:
    ann, bob = factories.admitted(authority), factories.admitted(authority)
    announcement = dataclasses.replace(PLAIN, peer=ann.peer_id)
    assert read_announcement(sign_announcement(announcement, ann), authority.pem) == announcement
    with pytest.raises(BadMessageError, match="in the name of"):
        read_announcement(sign_announcement(announcement, bob), authority.pem)


def test_a_large_one_is_refused_before_it_is_parsed(authority: Authority) -> None:
    with pytest.raises(BadMessageError, match="4096 are allowed"):
        read_announcement(bytes(MAX_RECORD_BYTES + 1), authority.pem)


def test_the_longest_announcement_has_room(authority: Authority) -> None:
    ann = factories.admitted(authority)
    longest = f"/dns4/{'.'.join(['a' * 62] * 4)}/tcp/65535/p2p/{NODE}"
    full = Announcement(ann.peer_id, 1, "h" * 255 + ":65535", "ø" * MAX_NAME, True, (longest,) * MAX_ADDRESSES, 1 << 62, 1 << 62)
    assert len(sign_announcement(full, ann)) <= MAX_RECORD_BYTES


def test_a_computers_name_is_announced_without_what_a_terminal_would_obey() -> None:
    assert printable("an\x1b[2Jn") == "an[2Jn"
    assert printable("x" * 100) == "x" * MAX_NAME


def test_the_newest_incarnation_holds_and_of_that_its_last_announcement() -> None:
    restarted = dataclasses.replace(PLAIN, incarnation=2, number=1)
    assert restarted.order > dataclasses.replace(PLAIN, number=9).order > PLAIN.order
