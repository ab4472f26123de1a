"""Hosts and ports, as people, messages and the DHT write them: `192.0.2.1:4242`, `[2001:db8::1]:4242`, `example.org:4242`,
`/ip6/2001:db8::1/tcp/4242`. An IPv6 address stands in brackets wherever a port may follow."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from protocols.errors import PortInUseError, UsageError

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


def hosts_of(listen: str) -> tuple[str, ...]:
    """The addresses that `listen` stands for: where there are both families, IPv6's everywhere is that of IPv4, too."""
    return tuple(EVERYWHERE.values()) if listen == EVERYWHERE[socket.AF_INET6] and socket.has_dualstack_ipv6() else (listen,)


def is_everywhere(host: str) -> bool:
    return host in EVERYWHERE.values()


def is_loopback(host: str) -> bool:
    """A name counts as the address of another machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def way_towards(host: str, port: int) -> tuple[str, str]:
    """(this machine's address, theirs) on the way to `host`, by IPv4 where there is a choice. Sends nothing. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, where = min(found, key=lambda it: it[0] is not socket.AF_INET)
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        return str(probe.getsockname()[0]), str(where[0])


def own_address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to `host`. Raises OSError."""
    return way_towards(host, port)[0]


def own_address(family: socket.AddressFamily) -> str:
    """This machine's address towards the world; the loopback address without one."""
    try:
        return own_address_towards(NOBODY[family], 9)
    except OSError:
        return LOOPBACK[family]


def is_behind_router(own: str) -> bool:
    """Whether `own` is an IPv4 address that means something on its own network only."""
    address = ipaddress.ip_address(own)
    return address.version == 4 and not address.is_global and not address.is_loopback


def own_global_ipv6() -> str:
    """This machine's address in the world by IPv6; '' without one."""
    own = own_address(socket.AF_INET6)
    return own if ipaddress.ip_address(own).is_global and socket.has_dualstack_ipv6() else ""


def is_own(host: str) -> bool:
    """Whether this machine has that address, or the address of that name."""
    with socket.socket(family_of(host)) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
        return True


def check_free(host: str, ports: Iterable[int]) -> None:
    """Whether this process could listen there now. Raises PortInUseError."""
    for port in ports:
        with socket.socket(family_of(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                cause = "the port is in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
                raise PortInUseError(
                    f"cannot listen on {joined(host, port)}: {cause}", remedy="Choose another --port."
                ) from error


def default_gateway() -> str | None:
    """The IPv4 router of this machine's network, as Linux or macOS tells; None if there is none."""
    if sys.platform == "linux":
        return linux_gateway(Path("/proc/net/route").read_text(encoding="ascii"))
    if sys.platform == "darwin":
        told = subprocess.run(["/sbin/route", "-n", "get", "default"], capture_output=True, text=True, check=False).stdout
        return macos_gateway(told)
    return None


def linux_gateway(table: str) -> str | None:
    """From /proc/net/route: the default route of the smallest metric."""
    rows = [line.split() for line in table.splitlines()[1:]]
    routes = [(int(row[6]), row[2]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000" and int(row[3], 16) & 2]
    if not routes:
        return None
    return str(ipaddress.IPv4Address(bytes.fromhex(min(routes)[1])[:: 1 if sys.byteorder == "big" else -1]))


def macos_gateway(told: str) -> str | None:
    """From what `route -n get default` says."""
    found = re.search(r"^\s*gateway: (\d+\.\d+\.\d+\.\d+)$", told, re.MULTILINE)
    return found[1] if found else None
