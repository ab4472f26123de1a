"""What connects the peers of a benchmark: `200/200x4,100/100x8a,20/100x2c` is up/down Mbit/s times how many peers.

The suffix `a` makes them auxiliary (they only reduce), `c` client-mode (they open connections and accept none).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocols.transport.bandwidth import MBIT_BYTES

_GROUP = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)x(\d+)([ac]?)")


@dataclass(frozen=True)
class Link:
    """One peer's line. Rates of 0: not shaped."""

    up_mbit: float = 0.0
    down_mbit: float = 0.0
    auxiliary: bool = False
    client_mode: bool = False

    @property
    def upload_bytes_s(self) -> float:
        return self.up_mbit * MBIT_BYTES

    @property
    def download_bytes_s(self) -> float:
        return self.down_mbit * MBIT_BYTES


def parse_links(text: str) -> tuple[Link, ...]:
    """One Link a peer, in the order given. Raises ValueError with a sentence that teaches the form."""
    links: list[Link] = []
    for group in text.split(","):
        match = _GROUP.fullmatch(group.strip())
        if match is None:
            raise ValueError(
                f"{group.strip()!r} is no group of links: write up/down Mbit/s x peers, as in 100/100x4 or 200/200x4a"
            )
        up, down, peers, kind = float(match[1]), float(match[2]), int(match[3]), match[4]
        if not up or not down or not peers:
            raise ValueError(f"{group.strip()!r}: rates and the number of peers are above 0")
        links += [Link(up, down, kind == "a", kind == "c")] * peers
    check(links)
    return tuple(links)


def check(links: list[Link] | tuple[Link, ...]) -> None:
    """Raises ValueError unless these peers can average at all."""
    if len(links) > 200:
        raise ValueError("at most 200 peers")
    if sum(not link.auxiliary for link in links) < 2:
        raise ValueError("averaging takes at least two peers that are not auxiliary")
    if all(link.client_mode for link in links):
        raise ValueError("somebody must accept connections: not all peers can be in client mode")
