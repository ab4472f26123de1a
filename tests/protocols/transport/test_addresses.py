from __future__ import annotations

import socket

import pytest

from protocols.errors import UsageError
from protocols.transport import addresses
from protocols.transport.addresses import (
    host_alone,
    host_and_port,
    host_to_listen_on,
    joined,
    multiaddress,
    own_address_towards,
    seen_as,
    split,
)


@pytest.mark.parametrize(("host", "address"), [("192.0.2.1", "192.0.2.1:80"), ("::1", "[::1]:80"), ("ex.org", "ex.org:80")])
def test_host_and_port_are_joined_and_split(host: str, address: str) -> None:
    assert joined(host, 80) == address
    assert split(address) == (host, 80)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("192.0.2.1", ("192.0.2.1", None)),
        ("192.0.2.1:4242", ("192.0.2.1", 4242)),
        ("home.example.org:4242", ("home.example.org", 4242)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[2001:DB8::1]:4242", ("2001:db8::1", 4242)),
        ("2001:db8::1:4242", ("2001:db8::1:4242", None)),  # an address as it stands: that is what the brackets are for
    ],
)
def test_what_may_be_announced(text: str, means: tuple[str, int | None]) -> None:
    assert host_and_port(text) == means


@pytest.mark.parametrize(
    "text", ["", ":80", "host:", "host:0", "host:65535", "host:http", "[::1", "[::1]:", "[host]:80", "1:2:3"]
)
def test_what_is_no_address_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        host_and_port(text)
    assert "[2001:db8::1]:4242" in refused.value.remedy


def test_a_coordinator_announces_a_host_without_a_port() -> None:
    assert host_alone("[::1]") == "::1"
    with pytest.raises(UsageError, match="names a port"):
        host_alone("[::1]:80")


def test_hosts_to_listen_on_are_ip_addresses_that_others_can_dial() -> None:
    assert [host_to_listen_on(host) for host in ("127.0.0.1", "::", "[::1]", "FD00::2")] == ["127.0.0.1", "::", "::1", "fd00::2"]
    for host in ("localhost", "", "127.0.0.1:80", "fe80::1%eth0"):
        with pytest.raises(UsageError):
            host_to_listen_on(host)


def test_a_dht_nodes_address_of_either_kind() -> None:
    assert (multiaddress("127.0.0.1", 0), multiaddress("::1", 5)) == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/5")
    node = "/ip6/::1/tcp/29101/p2p/ID"
    hosts = ("192.0.2.1", "2001:db8::1", "ex.org")
    kinds = ("ip4/192.0.2.1", "ip6/2001:db8::1", "dns6/ex.org")
    assert [seen_as(node, host) for host in hosts] == [f"/{kind}/tcp/29101/p2p/ID" for kind in kinds]
    assert seen_as("/ip4/10.0.0.1/tcp/1/p2p/ID", "ex.org") == "/dns4/ex.org/tcp/1/p2p/ID"


def test_the_own_address_is_of_the_family_of_whom_it_is_towards() -> None:
    assert own_address_towards("127.0.0.1", 80) == "127.0.0.1"
    assert own_address_towards("localhost", 80) == "127.0.0.1", "IPv4 where there is a choice"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_towards_an_ipv6_address_it_is_one_itself() -> None:
    assert own_address_towards("::1", 80) == "::1"


def test_without_a_way_into_the_world_it_is_the_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(host: str, port: int) -> str:
        raise OSError

    monkeypatch.setattr(addresses, "own_address_towards", unreachable)
    assert addresses.own_address(socket.AF_INET6) == "::1"
    assert addresses.own_address(socket.AF_INET) == "127.0.0.1"
