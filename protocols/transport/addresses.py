"""Hosts and ports, as people, messages and the DHT write them: `192.0.2.1:4242`, `[2001:db8::1]:4242`, `example.org:4242`,
`/ip6/2001:db8::1/tcp/4242`. An IPv6 address stands in brackets wherever a port may follow."""

from __future__ import annotations

import ipaddress
import socket

from protocols.errors import UsageError

MAX_PORT = (1 << 16) - 1  # with the next beside it
NOBODY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # reserved for documentation
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
EVERYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


def joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """The other way round. Raises ValueError."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def family_of(host: str) -> socket.AddressFamily:
    """A name counts as IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_everywhere(host: str) -> bool:
    return host in EVERYWHERE.values()


def host_to_listen_on(text: str) -> str:
    """What --host may be: an IP address, IPv6 with brackets or without. Raises UsageError."""
    host = text.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(
            f"--host {text} is no IP address",
            remedy="Give one that this machine has, such as 192.168.1.7 or ::1; or leave it out.",
        ) from error
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise UsageError(
            f"--host {text} is an address of one link: others could not tell which of theirs that is",
            remedy="Give a global or a unique local address (2000::/3, fc00::/7).",
        )
    with socket.socket(family_of(host)) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise UsageError(
                f"--host {text}: this machine has no such address",
                remedy="Give one of its own, or leave it out; what others reach it by goes into --announce.",
            ) from error
    return str(address)


def host_and_port(text: str) -> tuple[str, int | None]:
    """What --announce may be: a host, or a host and a port; None where no port is named. Raises UsageError."""
    try:
        if text.count(":") > 1 and not text.startswith("["):
            host, port = str(ipaddress.IPv6Address(text)), None
        elif text.endswith("]") or ":" not in text:
            host, port = text, None
        else:
            host, port = split(text)
        if host.startswith("[") or text.startswith("["):
            host = str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]")))
        if not host or (port is not None and not 0 < port < MAX_PORT):
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"--announce {text} is no address",
            remedy="Write HOST, HOST:PORT, or for IPv6 [ADDRESS]:PORT, such as [2001:db8::1]:4242.",
        ) from error
    return host, port


def host_alone(text: str) -> str:
    """What a coordinator's --announce may be: it goes into the ticket beside the port. Raises UsageError."""
    host, port = host_and_port(text)
    if port is not None:
        raise UsageError(f"--announce {text} names a port", remedy="Announce the host alone; --port says which port it is.")
    return host


def multiaddress(host: str, port: int) -> str:
    """Where a DHT node listens."""
    return f"/{'ip6' if family_of(host) is socket.AF_INET6 else 'ip4'}/{host}/tcp/{port}"


def seen_as(address: str, host: str) -> str:
    """A DHT node's multiaddress `address` under another host, which may be a name."""
    _, kind, _, rest = address.split("/", 3)  # /ip4/127.0.0.1/tcp/29101/p2p/ID
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns6" if kind == "ip6" else "dns4"
    return f"/{kind}/{host}/{rest}"


def own_address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to `host`, by IPv4 where there is a choice. Sends nothing. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, where = min(found, key=lambda it: it[0] is not socket.AF_INET)
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0])


def own_address(family: socket.AddressFamily) -> str:
    """This machine's address towards the world; the loopback address without one."""
    try:
        return own_address_towards(NOBODY[family], 9)
    except OSError:
        return LOOPBACK[family]
