"""Where a peer listens, and under which addresses it says so."""

from __future__ import annotations

import ipaddress

from protocols.transport import addresses


def hosts(host: str | None, coordinator: str) -> tuple[str, str]:
    """(address to listen on, host to announce): towards the coordinator (host:port), unless the volunteer gives `host`."""
    if host is not None:
        listen = addresses.host_to_listen_on(host)
        return listen, addresses.own_address(addresses.family_of(listen)) if addresses.is_everywhere(listen) else listen
    own = addresses.own_address_towards(*addresses.split(coordinator))
    is_local = ipaddress.ip_address(own).is_loopback
    return (own if is_local else addresses.EVERYWHERE[addresses.family_of(own)]), own


def announced(host: str, port: int, bulk_port: int) -> tuple[str, str]:
    """(address for calls, address for shards) under which others reach this peer; a forwarded port has the next beside it."""
    name, forwarded = addresses.host_and_port(host)
    if forwarded is not None:
        port, bulk_port = forwarded, forwarded + 1
    return addresses.joined(name, port), addresses.joined(name, bulk_port)
