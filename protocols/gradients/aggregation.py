"""Aggregation rules: how a reducer combines contributions. A run names one rule in its spec, so that all reducers use the same.

A rule maps (parts, weights) to one vector. `parts` are (n,) float vectors, one a contributor, in the order of contributor ids;
`weights` are their sample counts. The rule may write to `parts`, but keeps none of them. Each rule must be:

- Pure. The result depends on the arguments alone, bit by bit.
- Elementwise. Element i of the result depends on element i of the parts, and on the weights: a plan may cut the vector
  anywhere, and shards come in chunks.
- Finite. Finite parts give a finite result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from protocols.gradients.codecs import FloatArray
from protocols.sections import unknown_name

Rule: TypeAlias = Callable[[Sequence[FloatArray], Sequence[int]], FloatArray]


def weighted_mean(parts: Sequence[FloatArray], weights: Sequence[int]) -> FloatArray:
    """sum_i(w_i * x_i) / sum_i(w_i), summed in the order given.

    Each part is a mean over `w_i` samples, so the result is the mean over all samples.
    """
    if not parts:
        raise ValueError("nothing to average")
    total = np.float64(sum(weights))
    for part, weight in zip(parts, weights, strict=True):
        part *= part.dtype.type(weight / total)
    mean = parts[0]
    for part in parts[1:]:
        mean += part
    return mean


RULES: dict[str, Rule] = {"mean": weighted_mean}
"""By name: `averaging.rule` of the run spec."""


def rule_named(name: str) -> Rule:
    """Raises SpecError when there is no such rule."""
    if name not in RULES:
        raise unknown_name("averaging.rule", name, RULES)
    return RULES[name]
