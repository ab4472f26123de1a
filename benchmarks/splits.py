"""Who reduces how much: the ways to split a vector among peers that the benchmarks compare. Fractions are by the peers' order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from benchmarks.bound import equal_fractions
from benchmarks.links import Link
from protocols.round import planner, program
from protocols.round.records import Candidate, Shard

Fractions = list[float]
UNSHAPED = 1.0


def modelled(links: Sequence[Link]) -> dict[str, program.Link]:
    """As the planner sees them, each told its true rates and nobody left out. Lines that are not shaped are all alike."""
    lines = {f"p{rank:03}": link for rank, link in enumerate(links)}
    rates = {peer: (it.upload_bytes_s or UNSHAPED, it.download_bytes_s or UNSHAPED) for peer, it in lines.items()}
    return {peer: program.Link(*rates[peer], not it.auxiliary, not it.client_mode) for peer, it in lines.items()}


def seconds(links: Sequence[Link], fractions: Fractions, vector_bytes: int) -> float:
    """What the slowest line takes, an auxiliary peer's download of the averages included."""
    peers = modelled(links)
    return program.round_seconds(peers, dict(zip(peers, fractions, strict=True)), vector_bytes)


def ours(links: Sequence[Link], elements: int, vector_bytes: int) -> Fractions:
    peers = modelled(links)
    found = planner.fastest_fractions(peers, elements, vector_bytes)
    return [found.get(peer, 0.0) for peer in peers]


def equal(links: Sequence[Link], elements: int, vector_bytes: int) -> Fractions:
    return equal_fractions(links)


def server(links: Sequence[Link], elements: int, vector_bytes: int) -> Fractions:
    """The best single reducer: a parameter server."""
    alone = [[float(other == rank) for other in range(len(links))] for rank, link in enumerate(links) if not link.client_mode]
    return min(alone, key=lambda fractions: seconds(links, fractions, vector_bytes))


def hivemind(links: Sequence[Link], elements: int, vector_bytes: int) -> Fractions:
    """hivemind's own program, told the slower of a peer's two rates, since it takes one number; 0 means client mode."""
    rates = [0.0 if link.client_mode else min(link.up_mbit, link.down_mbit) or UNSHAPED for link in links]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks scipy for the interior-point method, and torch for its jit
        from hivemind.averaging.load_balancing import load_balance_peers  # starts no process, but takes seconds

        parts = load_balance_peers(elements, rates)
    return [part / elements for part in parts]


SPLITS: dict[str, Callable[[Sequence[Link], int, int], Fractions]] = {
    "ours": ours,
    "equal": equal,
    "server": server,
    "hivemind": hivemind,
}


def shards(elements: int, reducers: Mapping[str, str], fractions: Mapping[str, float]) -> tuple[Shard, ...]:
    """A plan's shards with these fractions, as the planner cuts them. `reducers`: peer -> address, of whoever has a fraction."""
    sharing = [Candidate(peer, address) for peer, address in sorted(reducers.items()) if fractions[peer] > 0]
    return planner.cut_shards(elements, sharing, fractions, dict.fromkeys(fractions, planner.STREAMS))
