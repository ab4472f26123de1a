"""The least time in which peers on shaped links can average a vector, whoever reduces what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from benchmarks.links import Link


def encoded_bytes(codec: str, elements: int) -> int:
    from protocols.gradients.codecs import CODECS  # torch comes with it

    return CODECS[codec].encoded_bytes(elements)


def loads(vector_bytes: int, links: Sequence[Link], fractions: Sequence[float]) -> list[float]:
    """Bytes that each peer must send, and as many that it must receive, when peer i reduces `fractions[i]` of the vector.

    Of n contributors, one sends what others reduce and receives their averages, V (1 - w); and it receives n - 1 contributions
    to its own shard and sends as many averages, V (n - 1) w. An auxiliary peer has nothing but n contributions to its shard.
    """
    contributors = sum(not link.auxiliary for link in links)
    return [
        vector_bytes * (contributors * fraction if link.auxiliary else 1 + (contributors - 2) * fraction)
        for link, fraction in zip(links, fractions, strict=True)
    ]


def seconds(vector_bytes: int, links: Sequence[Link], fractions: Sequence[float]) -> float:
    """The time that the busiest direction of any link takes with these fractions."""
    return max(
        load / min(link.upload_bytes_s, link.download_bytes_s)
        for link, load in zip(links, loads(vector_bytes, links, fractions), strict=True)
    )


def equal_fractions(links: Sequence[Link]) -> list[float]:
    """Everybody who accepts connections reduces as much as the others."""
    reducers = sum(not link.client_mode for link in links)
    return [0.0 if link.client_mode else 1 / reducers for link in links]


def best_fractions(links: Sequence[Link]) -> list[float]:
    """Fractions w (sum 1) with the least `seconds`: a linear program in w and the time."""
    contributors = sum(not link.auxiliary for link in links)
    slowest = np.array([min(link.upload_bytes_s, link.download_bytes_s) for link in links])
    slowest = slowest / slowest.mean()
    slope = np.array([contributors if link.auxiliary else contributors - 2 for link in links]) / slowest
    fixed = np.array([0.0 if link.auxiliary else 1.0 for link in links]) / slowest
    most = [0.0 if link.client_mode else 1.0 for link in links]
    solved = linprog(
        c=[0.0] * len(links) + [1.0],
        A_ub=np.column_stack([np.diag(slope), -np.ones(len(links))]),
        b_ub=-fixed,
        A_eq=[[1.0] * len(links) + [0.0]],
        b_eq=[1.0],
        bounds=[*((0.0, limit) for limit in most), (0.0, None)],
        method="highs",
    )
    if not solved.success:
        raise ArithmeticError(f"the bound's linear program has no solution: {solved.message}")
    return [float(fraction) for fraction in solved.x[:-1]]


def bound(vector_bytes: int, links: Sequence[Link]) -> float:
    """Seconds: the least over shard fractions of what the busiest direction of any link takes for a vector of so many bytes."""
    return seconds(vector_bytes, links, best_fractions(links))
