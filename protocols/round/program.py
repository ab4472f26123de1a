"""How large a shard each reducer gets, and who gives at all: DeDLOC's linear program (Diskin et al., 2021), solved with HiGHS.

With the contributors fixed, round time T is least over the fractions w of the vector that reachable members reduce. Member i of
M, with c_i = 1 if it is one of the n contributors, sends its contribution to the other reducers and its averages to the other
members, and receives the others' averages and the others' contributions to its own shard. Its memory may limit w_i:

    up    c_i V (1 - w_i) + w_i V (M - 1)   <= u_i T
    down  V (1 - w_i) + w_i V (n - c_i)     <= d_i T      sum of w = 1, 0 <= w_i <= m_i

Equal links make it an all-reduce, one fast reachable peer among client-mode ones a parameter server; what lies between, a hybrid.
Pure. The solver is loaded when it is first needed (prepare), since whoever never leads needs none.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# A member's samples are worth waiting for unless the round's samples per second grow by more than this without them.
WORTH = 1.1
# Bytes/s: a line that carries less is planned as if it carried this.
SLOWEST = 100.0
# Less than this of a vector is the solver's rounding: on a very slow line it would cost more than all the rest.
NEGLIGIBLE = 1e-5
# Beyond this ratio of two rates the slower is as good as nothing, and would only trouble the solver.
WIDEST = 1e6


@dataclass(frozen=True)
class Link:
    """A member's line, and what it does in a plan."""

    upload_bytes_s: float
    download_bytes_s: float
    gives: bool
    reduces: bool  # whether it may
    most: float = 1.0  # of the vector, that it has the memory to reduce

    def load(self, fraction: float, members: int, givers: int) -> tuple[float, float]:
        """Of what it sends and what it receives in a round, in encoded vectors, when it reduces this fraction."""
        own = int(self.gives)
        return own + fraction * (members - 1 - own), 1 + fraction * (givers - own - 1)


@dataclass(frozen=True)
class Split:
    seconds: float
    fractions: Mapping[str, float]  # of reducers; sum 1


def round_seconds(
    channels: Mapping[str, Link], fractions: Mapping[str, float], vector_bytes: float, *, members: int | None = None
) -> float:
    """How long the slowest of these lines takes over its part, of a round of so many `members` (None: of these)."""
    givers = sum(link.gives for link in channels.values())
    longest = 0.0
    for peer, link in channels.items():
        up, down = link.load(fractions.get(peer, 0.0), members or len(channels), givers)
        longest = max(longest, up / link.upload_bytes_s, down / link.download_bytes_s)
    return longest * vector_bytes


def prepare() -> None:
    """Load the solver now (half a second), rather than when a batch is full and everybody waits for the plan."""
    import scipy.optimize  # noqa: F401


def fastest(channels: Mapping[str, Link], vector_bytes: float) -> Split:
    """The split of least round time. Rates are positive, and somebody reduces.

    Where a line that no split can relieve makes the round long, many splits are equally fast: what others have to spare is used
    evenly then, each being filled to the same share of what it could take in that time. When all together lack the memory, each
    takes the same multiple of what it has room for.
    """
    reducers = [peer for peer, link in channels.items() if link.reduces]
    members, givers = len(channels), sum(link.gives for link in channels.values())
    room = sum(channels[peer].most for peer in reducers)
    if len(reducers) == 1 or 0 < room <= 1:
        full = {peer: channels[peer].most / room for peer in reducers} if len(reducers) > 1 else {reducers[0]: 1.0}
        return Split(round_seconds(channels, full, vector_bytes), full)
    times = _Times.of(channels, members, givers)
    memory = [channels[peer].most for peer in reducers]
    longest = _solve([times.rows(channels[peer], members, givers) for peer in reducers], memory)
    fractions = _filled([times.bounds(channels[peer], members, givers, longest) for peer in reducers], memory)
    fractions = [fraction if fraction > NEGLIGIBLE else 0.0 for fraction in fractions]
    total = sum(fractions)
    split = {peer: fraction / total for peer, fraction in zip(reducers, fractions, strict=True)}
    return Split(round_seconds(channels, split, vector_bytes), split)


Row = tuple[float, float]  # (a, b) of a constraint a w - t <= -b


@dataclass(frozen=True)
class _Times:
    """Time is counted in what the longest unavoidable transfer takes, so that the least round time is between 1 and `members`
    whatever the rates are."""

    unit_s: float  # for one vector byte

    @classmethod
    def of(cls, channels: Mapping[str, Link], members: int, givers: int) -> _Times:
        seconds = []
        for link in channels.values():
            none, whole = link.load(0.0, members, givers), link.load(1.0, members, givers)
            seconds.append(min(none[0], whole[0]) / link.upload_bytes_s)
            seconds.append(min(none[1], whole[1]) / link.download_bytes_s)
        return cls(max(seconds))

    def rows(self, link: Link, members: int, givers: int) -> tuple[Row, Row]:
        none, whole = link.load(0.0, members, givers), link.load(1.0, members, givers)
        scale = [1 / (rate * self.unit_s) for rate in (link.upload_bytes_s, link.download_bytes_s)]
        up, down = (((w - n) * (min(s, WIDEST) if w > n else s), n * s) for n, w, s in zip(none, whole, scale, strict=True))
        return up, down

    def bounds(self, link: Link, members: int, givers: int, longest: float) -> tuple[float, float]:
        """Least and most that this member's line lets it reduce in that time; the most may be several vectors."""
        least, most = 0.0, WIDEST
        for a, b in self.rows(link, members, givers):
            if a > 0:
                most = min(most, max(0.0, (longest - b) / a))
            elif a < 0:
                least = max(least, (longest - b) / a)
        return least, max(least, most)


def _filled(bounds: Sequence[tuple[float, float]], most: Sequence[float]) -> list[float]:
    """Fractions with sum 1, each as far between its bounds as the others; those that would be beyond their `most` are at it."""
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
    """Least t >= 1 such that fractions with sum 1, none beyond its `most`, keep every constraint."""
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
    if not found.success:  # one reducer can always do it all, so there is always a solution
        raise ArithmeticError(f"the linear program has no solution: {found.message}")
    return float(found.x[-1])


def measured(rates: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]] | None:
    """Rates (up, down) as planned with: of whoever has none yet, the median of those who have. None when nobody has."""
    medians = []
    for way in (0, 1):
        known = [rate[way] for rate in rates.values() if rate[way] > 0]
        if not known:
            return None
        medians.append(statistics.median(known))
    return {peer: (max(up or medians[0], SLOWEST), max(down or medians[1], SLOWEST)) for peer, (up, down) in rates.items()}


def worth_waiting_for(
    channels: Mapping[str, Link], samples: Mapping[str, int], gather_s: float, vector_bytes: float
) -> frozenset[str]:
    """Those of the links that give, whose samples are worth their time: without the others, which give no more and still receive,
    committed samples per second grow by more than WORTH allows.

    Tried are those who could send a vector in half the time of the slowest, a quarter, and so on: one program each, unless the
    transfers that no split can spare anybody would take too long.
    """
    givers = frozenset(peer for peer, link in channels.items() if link.gives)
    unavoidable_s = {peer: vector_bytes / link.upload_bytes_s for peer, link in channels.items() if link.gives}
    received_s = vector_bytes / min(link.download_bytes_s for link in channels.values())
    best, most = givers, 0.0  # samples per second that a smaller set has to beat
    limit_s, some, last = max(unavoidable_s.values()), givers, frozenset[str]()
    while some:
        committed = sum(samples[peer] for peer in some)
        at_best_s = gather_s + max(received_s if len(some) > 1 else 0.0, *(unavoidable_s[peer] for peer in some))
        if some != last and committed > most * at_best_s:
            planned = {peer: replace(link, gives=peer in some) for peer, link in channels.items()}
            speed = committed / max(gather_s + fastest(planned, vector_bytes).seconds, 1e-9)
            if some == givers:
                most = speed * WORTH
            elif speed > most:
                best, most = some, speed
        last, limit_s = some, limit_s / 2
        some = frozenset(peer for peer in givers if unavoidable_s[peer] <= limit_s)
    return best
