"""Aggregation rules: how a reducer combines contributions. A run names one rule in its spec, so that all reducers use the same.

A rule maps (parts, weights, norms) to one vector. `parts` are (n,) float vectors, one a contributor, in the order of
contributor ids; `weights` are their sample counts, capped (`protocols.round.weights`); `norms` are the L2 norms of their whole
vectors, of which a part is a piece. A contributor names its norm before it sends, and the reducer checks each part against it.
The rule may write to `parts`, but keeps none of them. Each rule must be:

- Pure. The result depends on the arguments alone, bit by bit.
- Elementwise. Element i of the result depends on element i of the parts, and on weights and norms: a plan may cut the vector
  anywhere, and shards come in chunks.
- Finite. Finite parts give a finite result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from protocols.gradients.codecs import FloatArray
from protocols.sections import unknown_name

Rule: TypeAlias = Callable[[Sequence[FloatArray], Sequence[float], Sequence[float]], FloatArray]

# A contribution counts as no longer than so many times the median.
NORM_CAP = 2.0


def weighted_mean(parts: Sequence[FloatArray], weights: Sequence[float], norms: Sequence[float]) -> FloatArray:
    """sum_i(w_i * x_i) / sum_i(w_i), summed in the order given.

    Each part is a mean over its samples. So the result is the mean over all samples, if the weights are their counts.
    """
    return _combined(parts, weights, [1.0] * len(parts))


def norm_capped_mean(parts: Sequence[FloatArray], weights: Sequence[float], norms: Sequence[float]) -> FloatArray:
    """The weighted mean of contributions that are scaled down to at most NORM_CAP times the median norm.

    So nobody moves the average further than NORM_CAP honest contributions of its weight would. The median is by weight. A
    contribution of fewer samples than usual is noisier, and may be longer by the root of that ratio. One of more samples must be
    shorter by that root, down to the median: so claimed samples buy little.
    """
    order = sorted(range(len(norms)), key=lambda index: norms[index])
    half, reached = sum(weights) / 2, 0.0
    for middle in order:
        reached += weights[middle]
        if reached >= half:
            break
    usual, samples = norms[middle], weights[middle]
    caps = [usual * max(1.0, NORM_CAP * math.sqrt(samples / weight)) for weight in weights]
    return _combined(parts, weights, [min(1.0, cap / norm) if norm else 1.0 for cap, norm in zip(caps, norms, strict=True)])


def _combined(parts: Sequence[FloatArray], weights: Sequence[float], factors: Sequence[float]) -> FloatArray:
    """sum_i(f_i * w_i * x_i) / sum_i(w_i)"""
    if not parts:
        raise ValueError("nothing to average")
    total = np.float64(sum(weights))
    for part, weight, factor in zip(parts, weights, factors, strict=True):
        part *= part.dtype.type(weight / total * factor)
    mean = parts[0]
    for part in parts[1:]:
        mean += part
    return mean


RULES: dict[str, Rule] = {"mean": weighted_mean, "norm-capped": norm_capped_mean}
"""By name: `averaging.rule` of the run spec."""


def rule_named(name: str) -> Rule:
    """Raises SpecError when there is no such rule."""
    if name not in RULES:
        raise unknown_name("averaging.rule", name, RULES)
    return RULES[name]
