"""What others may ask of this process at a time: calls, and the network thread's time, for each peer and each address.

Every record that comes in takes time of the one thread that answers everybody. So each caller has a pace, and is read no faster:
what it sends beyond that waits in its own machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator

from protocols.transport.bandwidth import RateLimiter

# A peer follows one leader, and asks another for a few things at once. Peers behind one router share an address.
MAX_CALLS_OF_PEER, MAX_CALLS_OF_ADDRESS, MAX_CALLS = 32, 512, 4096
# A megabyte of records takes 0.1 s to read. What each takes besides is as much as 2 KiB of them take, and a call is made in the
# time of ten. So a peer has a tenth of the thread, 512 records a second, after a burst of two seconds' worth.
BYTES_S_OF_PEER, BYTES_S_OF_ADDRESS = 1 << 20, 4 << 20
RECORD_BYTES, CALL_BYTES = 2 << 10, 20 << 10
BURST_S = 2.0
# So many callers' paces are remembered at least. Who was silent for BURST_S has its whole burst again, so that nothing is lost.
REMEMBERED = 1024


def network_of(address: str) -> str:
    """Whose machine that is: an address of IPv4, or the /64 of one of IPv6, since every home has a whole one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


class Pace:
    """How fast records of each caller are read."""

    def __init__(self, bytes_s: float, clock: Callable[[], float], burst_s: float = BURST_S) -> None:
        self._bytes_s = bytes_s
        self._clock = clock
        self._burst_s = burst_s
        self._limits: dict[str, RateLimiter] = {}

    async def turn(self, caller: str, size: int) -> None:
        """Returns when a record of `size` bytes, or what takes as long, may be read."""
        if caller not in self._limits and len(self._limits) >= REMEMBERED:
            self._limits = {name: limit for name, limit in self._limits.items() if not limit.is_rested}
        await self._limits.setdefault(caller, RateLimiter(self._bytes_s, self._clock, self._burst_s)).turn(size)

    def wait_s(self, caller: str) -> float:
        """How long the next record would wait."""
        return self._limits[caller].wait_s if caller in self._limits else 0.0


class Callers:
    """The callers of one server."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._of_peer, self._of_address = Pace(BYTES_S_OF_PEER, clock), Pace(BYTES_S_OF_ADDRESS, clock)
        self._calls: Counter[str] = Counter()

    async def turn(self, peer: str, network: str, size: int) -> None:
        """Returns when a record of `size` bytes that `peer` sent may be read."""
        await self._of_peer.turn(peer, size + RECORD_BYTES)
        await self._of_address.turn(network, size + RECORD_BYTES)

    @contextlib.contextmanager
    def calling(self, peer: str, network: str) -> Iterator[str]:
        """One more call, within: why it is too much, or '' if it is not."""
        names = {peer: MAX_CALLS_OF_PEER, network: MAX_CALLS_OF_ADDRESS, "": MAX_CALLS}
        self._calls.update(names.keys())
        try:
            full = [name for name, most in names.items() if self._calls[name] > most]
            yield f"{names[full[0]]} calls of {'this peer' if full[0] == peer else 'others'} are open here" if full else ""
        finally:
            self._calls.subtract(names.keys())
            for name in names:
                if not self._calls[name]:
                    del self._calls[name]
