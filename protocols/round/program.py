"""The linear program behind a plan: how large a shard each reducer gets, and who contributes at all (pure).

The program is DeDLOC's (Diskin et al., 2021), solved with HiGHS. For a fixed set of contributors it finds the fractions w of the
vector for which the round time T is least. V is the size of the encoded vector. Member i is one of M members; c_i is 1 if it is
one of the n contributors, else 0; u_i and d_i are its rates; m_i is the fraction that its memory allows. It sends its
contribution to the other reducers and its averages to the other members. It receives the others' averages and their
contributions to its own shard:

    up    c_i V (1 - w_i) + w_i V (M - 1)   <= u_i T
    down  V (1 - w_i) + w_i V (n - c_i)     <= d_i T      sum of w = 1, 0 <= w_i <= m_i, w_i = 0 if i cannot be dialled

With equal links the solution is an all-reduce. With one fast reachable peer among client-mode peers it is a parameter server.
Everything between is a hybrid. The solver is loaded when it is first needed (prepare): a peer that never leads needs none.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# A member's samples are left out only if the round's samples per second grow by more than this factor without them.
WORTH = 1.1
# Bytes/s. The program takes a slower line for one of this rate.
SLOWEST = 100.0
# Fractions up to this are dropped: they are the solver's rounding, and on a very slow line they would take longer than the rest.
NEGLIGIBLE = 1e-5
# The solver needs numbers of similar size, so a line this many times slower than the round needs counts as no slower than this.
# Such a line would reduce a negligible fraction anyway.
WIDEST = 1e6


@dataclass(frozen=True)
class Link:
    """A member's line, and what it does in a plan."""

    upload_bytes_s: float
    download_bytes_s: float
    sends: bool
    reduces: bool  # whether it may
    most: float = 1.0  # the fraction of the vector that it has the memory to reduce

    def load(self, fraction: float, members: int, senders: int) -> tuple[float, float]:
        """(sent, received) in a round in which it reduces this fraction, in encoded vectors."""
        own = int(self.sends)
        return own + fraction * (members - 1 - own), 1 + fraction * (senders - own - 1)


@dataclass(frozen=True)
class Split:
    """A solution: the fraction of the vector that each reducer gets, and the round time."""

    seconds: float
    fractions: Mapping[str, float]  # of reducers; sum 1


def round_seconds(
    links: Mapping[str, Link], fractions: Mapping[str, float], vector_bytes: float, *, members: int | None = None
) -> float:
    """Seconds that the slowest of these lines takes over its part of a round of `members` (None: the lines given)."""
    senders = sum(link.sends for link in links.values())
    longest = 0.0
    for peer, link in links.items():
        up, down = link.load(fractions.get(peer, 0.0), members or len(links), senders)
        longest = max(longest, up / link.upload_bytes_s, down / link.download_bytes_s)
    return longest * vector_bytes


def prepare() -> None:
    """Load the solver now. It takes half a second, for which everybody would wait when a batch is full."""
    import scipy.optimize  # noqa: F401


def fastest(links: Mapping[str, Link], vector_bytes: float) -> Split:
    """The split of least round time. All rates must be positive, and at least one link must reduce.

    Often one line makes the round long and no split can relieve it. Then many splits are equally fast, and each reducer is
    filled to the same share of what it could take in that time. If all together lack the memory, each takes the same multiple
    of its room.
    """
    reducers = [peer for peer, link in links.items() if link.reduces]
    members, senders = len(links), sum(link.sends for link in links.values())
    room = sum(links[peer].most for peer in reducers)
    if len(reducers) == 1 or 0 < room <= 1:
        full = {peer: links[peer].most / room for peer in reducers} if len(reducers) > 1 else {reducers[0]: 1.0}
        return Split(round_seconds(links, full, vector_bytes), full)
    # The unit of time, for one byte of the vector: in it the solver's numbers stay near 1, whatever the rates are. It is a lower
    # bound of the round time. A round of both, one after the other, is always possible, unless the only contributor reduces. So
    # the least round time is between 1 and max(2, members - 1) units.
    unit_s = max(_unavoidable(links, members, senders), _shared(links, members, senders))
    rows = [_rows(links[peer], members, senders, unit_s) for peer in reducers]
    memory = [links[peer].most for peer in reducers]
    longest = _solve(rows, memory)
    fractions = _filled([_bounds(constraints, longest) for constraints in rows], memory)
    fractions = [fraction if fraction > NEGLIGIBLE else 0.0 for fraction in fractions]
    total = sum(fractions)
    split = {peer: fraction / total for peer, fraction in zip(reducers, fractions, strict=True)}
    return Split(round_seconds(links, split, vector_bytes), split)


Row = tuple[float, float]  # (a, b) of a constraint a w - t <= -b


def _rows(link: Link, members: int, senders: int, unit_s: float) -> tuple[Row, Row]:
    """The two constraints of a reducer, up and down, in units of `unit_s` seconds for one byte of the vector."""
    none, whole = link.load(0.0, members, senders), link.load(1.0, members, senders)
    scale = [1 / (rate * unit_s) for rate in (link.upload_bytes_s, link.download_bytes_s)]
    up, down = (((w - n) * (min(s, WIDEST) if w > n else s), n * s) for n, w, s in zip(none, whole, scale, strict=True))
    return up, down


def _bounds(rows: tuple[Row, Row], longest: float) -> tuple[float, float]:
    """(least, most) that a reducer's line lets it reduce in the time `longest`, in vectors. The most may be above 1."""
    least, most = 0.0, WIDEST
    for a, b in rows:
        if a > 0:
            most = min(most, max(0.0, (longest - b) / a))
        elif a < 0:
            least = max(least, (longest - b) / a)
    return least, max(least, most)


def _unavoidable(links: Mapping[str, Link], members: int, senders: int) -> float:
    """Seconds for each byte of the vector that the slowest transfer takes under every split."""
    longest = 0.0
    for link in links.values():
        most = link.most if link.reduces else 0.0
        up, down = map(min, link.load(0.0, members, senders), link.load(most, members, senders))
        longest = max(longest, up / link.upload_bytes_s, down / link.download_bytes_s)
    return longest


def _shared(links: Mapping[str, Link], members: int, senders: int) -> float:
    """Seconds for each byte of the vector that the reducers take over the whole vector, if reducing is all that they do.

    A reducer takes on its fraction at a constant speed until its memory is full. We walk over the reducers in the order in
    which that happens.
    """
    rest = 1.0
    filling: list[tuple[float, float]] = []  # (when its memory is full, the fraction it takes on in a unit of time)
    for link in links.values():
        if not link.reduces:
            continue
        none, whole = link.load(0.0, members, senders), link.load(1.0, members, senders)
        slowness = max((whole[0] - none[0]) / link.upload_bytes_s, (whole[1] - none[1]) / link.download_bytes_s)
        if slowness > 0:
            filling.append((link.most * slowness, 1 / slowness))
        else:
            rest -= link.most  # its lines carry no more because it reduces
    filling.sort(reverse=True)
    speeds = list(itertools.accumulate(speed for _, speed in filling))  # of this one and of those that fill up later
    for (full_at, speed), speeds_left in zip(reversed(filling), reversed(speeds), strict=True):
        if rest <= full_at * speeds_left:
            return max(0.0, rest) / speeds_left
        rest -= full_at * speed
    return 0.0


def _filled(bounds: Sequence[tuple[float, float]], most: Sequence[float]) -> list[float]:
    """Fractions with sum 1, all at the same share of the way between their bounds. None is beyond its `most`."""
    fractions = list(most)
    free = set(range(len(most)))
    while free:
        rest = 1 - sum(most[index] for index in range(len(most)) if index not in free)
        spare = max(sum(bounds[index][1] - bounds[index][0] for index in free), 1e-12)
        filled = (rest - sum(bounds[index][0] for index in free)) / spare
        for index in free:
            low, high = bounds[index]
            fractions[index] = low + (high - low) * filled
        beyond = {index for index in free if fractions[index] > most[index]}
        if not beyond:
            break
        for index in beyond:
            fractions[index] = most[index]
        free -= beyond
    return fractions


def _solve(reducers: Sequence[tuple[Row, Row]], most: Sequence[float]) -> float:
    """The least t >= 1 for which fractions with sum 1, none beyond its `most`, keep every constraint."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    count = len(reducers)
    values, columns, limits = [], [], []
    for index, rows in enumerate(reducers):
        for a, b in rows:
            values += [a, -1.0]
            columns += [index, count]
            limits.append(-b)
    starts = range(0, 2 * len(limits) + 1, 2)
    found = linprog(
        [0.0] * count + [1.0],
        A_ub=csr_array((values, columns, list(starts)), shape=(len(limits), count + 1)),
        b_ub=limits,
        A_eq=[[1.0] * count + [0.0]],
        b_eq=[1.0],
        bounds=[*((0.0, share) for share in most), (1.0, None)],
        method="highs",
    )
    if not found.success:  # a bug: for a large enough t there is always a solution
        raise ArithmeticError(f"the linear program has no solution: {found.message}")
    return float(found.x[-1])


def measured(rates: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]] | None:
    """Fill in rates (up, down) that are not measured yet (0) with the median of the measured ones; None if there are none."""
    ups, downs = ([rate[way] for rate in rates.values() if rate[way] > 0] for way in (0, 1))
    if not ups or not downs:
        return None
    up_else, down_else = statistics.median(ups), statistics.median(downs)
    return {peer: (max(up or up_else, SLOWEST), max(down or down_else, SLOWEST)) for peer, (up, down) in rates.items()}


def worth_waiting_for(
    links: Mapping[str, Link], samples: Mapping[str, int], gather_s: float, vector_bytes: float
) -> frozenset[str]:
    """The contributors whose samples are worth the time of their uploads.

    The others then only receive. They are left out only if committed samples per second grow by more than WORTH without them.
    `samples` maps each contributor to its samples; the swarm gathers the next batch in `gather_s` seconds.

    We try the contributors that could send a vector in the time of the slowest, in half of it, in a quarter, and so on. Each
    set costs one linear program. We skip it for a set whose unavoidable transfers already take too long.
    """
    senders = frozenset(peer for peer, link in links.items() if link.sends)
    unavoidable_s = {peer: vector_bytes / link.upload_bytes_s for peer, link in links.items() if link.sends}
    received_s = vector_bytes / min(link.download_bytes_s for link in links.values())
    best, most = senders, 0.0  # `most`: samples per second that a smaller set must beat
    limit_s, some, last = max(unavoidable_s.values()), senders, frozenset[str]()
    while some:
        committed = sum(samples[peer] for peer in some)
        at_best_s = gather_s + max(received_s if len(some) > 1 else 0.0, *(unavoidable_s[peer] for peer in some))
        if some != last and committed > most * at_best_s:
            planned = {peer: replace(link, sends=peer in some) for peer, link in links.items()}
            speed = committed / max(gather_s + fastest(planned, vector_bytes).seconds, 1e-9)
            if some == senders:
                most = speed * WORTH
            elif speed > most:
                best, most = some, speed
        last, limit_s = some, limit_s / 2
        some = frozenset(peer for peer in senders if unavoidable_s[peer] <= limit_s)
    return best
