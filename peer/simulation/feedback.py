"""What every process has to give, worked out apart from it: what its samples come to, and what its earlier encodings lost.

Error feedback loses nothing: what was given and what is still to come are together what was drawn, through attempts that fail,
epochs that miss a contribution, and other codecs. What is still to come changes when a commit that names the contribution is
applied, and is given up with the lineage that a snapshot takes the place of; nothing else changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from peer.settings import RunSettings
from peer.simulation.problem import Problem, Vector
from peer.simulation.world import World
from protocols.gradients.aggregation import rule_named
from protocols.gradients.codecs import Codec
from protocols.round.records import Commit, Contribution
from protocols.round.weights import capped_weights

# What is still to come is kept in bfloat16: this share of it at most is rounded away at each commit, with a little room.
KEPT_ERROR = 2.0**-8
# Of arithmetic in a codec's working precision.
ROUNDING = {np.float32: 2.0**-22, np.float64: 2.0**-40}


@dataclass(frozen=True)
class Given:
    contribution: Contribution
    codec: Codec
    values: Vector  # the mean, as everybody decodes it
    lost: Vector  # of the mean times the samples
    sound: bool  # it is known at which parameters the samples were drawn


@dataclass
class _Owed:
    """By one process."""

    vector: Vector
    rounding: Vector  # how far off the process may be by now
    given: Given | None = None  # since the last commit or snapshot
    sound: bool = True  # it is known what is owed


def allowed(codec: Codec, values: Vector, size: Vector) -> Vector:
    """How far the encoding of `values` may be off, which came of adding up parts of this `size`."""
    bound: Vector = 1.001 * codec.max_error(values) + ROUNDING[codec.working] * (size + np.abs(values))
    return bound


class Feedback:
    def __init__(self, world: World, problem: Problem, settings: RunSettings, liars: Collection[str] = ()) -> None:
        """`liars`: peers that may name other contributions than they froze."""
        self._world, self._liars = world, liars
        self._rule, self._max_share = rule_named(settings.rule), settings.max_share
        self._elements, self._contributed = problem.elements, problem.contributed
        self._owed: dict[tuple[str, int], _Owed] = {}
        self._given: dict[Contribution, Given] = {}
        self.weights_at: Callable[[str], Vector] = lambda lineage: self._zeros()  # lineage -> its parameters

    def _zeros(self) -> Vector:
        return np.zeros(self._elements)

    def _nothing(self) -> _Owed:
        return _Owed(self._zeros(), self._zeros())

    def given(self, contribution: Contribution) -> Given:
        found = self._given.get(contribution)
        if found is None:
            self._world.violated("2 given", f"{named(contribution)} were never frozen")
        return found

    def froze(self, contribution: Contribution, encoded: bytes, codec: Codec, *, sound: bool) -> None:
        """Checked where the problem tells what samples come to. `sound`: by an honest process whose state had not drifted."""
        drawn, size = self._zeros(), self._zeros()
        c, contributed = contribution, self._contributed
        if contributed is not None and sound:
            drawn, size = contributed(c.peer, c.incarnation, c.first, c.end, self.weights_at(c.base))
        owed = self._owed.setdefault((c.peer, c.incarnation), self._nothing())
        exact = drawn + owed.vector
        size = size + np.abs(owed.vector)
        values = codec.decode(encoded, self._elements).astype(np.float64)
        off, unknown = np.abs(values - exact / c.weight), owed.rounding / c.weight
        sound = sound and owed.sound and contributed is not None
        if sound and bool((off > unknown + allowed(codec, np.abs(exact / c.weight) + unknown, size / c.weight)).any()):
            what = f"{named(c)} come to something else than theirs and what was lost before, by up to {off.max():.3g}"
            self._world.violated("2 given", what)
        lost = exact - values * c.weight if codec.error_feedback else self._zeros()
        owed.given = self._given[c] = Given(c, codec, values, lost, sound)

    def applied(self, peer: str, incarnation: int, commit: Commit) -> None:
        owed = self._owed.setdefault((peer, incarnation), self._nothing())
        given, owed.given = owed.given, None
        if given is not None and given.contribution in commit.contributions:
            owed.vector, owed.sound = given.lost, given.sound
            kept = given.codec.error_feedback
            owed.rounding = owed.rounding + KEPT_ERROR * np.abs(given.lost) if kept else self._zeros()

    def restored(self, peer: str, incarnation: int) -> None:
        self._owed[peer, incarnation] = self._nothing()

    def check_mean(self, commit: Commit, codec: Codec, averaged: bytes) -> None:
        """The commit's averages are those of what the contributors that it names gave, weighted by the run's rule."""
        if any(contribution not in self._given and contribution.peer in self._liars for contribution in commit.contributions):
            return  # a liar sent what nobody saw it freeze
        parts = [self.given(contribution).values.copy() for contribution in commit.contributions]
        weights = capped_weights([contribution.weight for contribution in commit.contributions], self._max_share)
        size = sum((np.abs(part) * (weight / sum(weights)) for part, weight in zip(parts, weights, strict=True)), self._zeros())
        norms = [contribution.norm for contribution in commit.contributions]
        mean = self._rule(parts, weights, norms).astype(np.float64)
        got = codec.decode(averaged, self._elements).astype(np.float64)
        if bool((np.abs(got - mean) > allowed(codec, mean, size)).any()):
            self._world.violated("2 mean", f"{commit.digest[:8]} is not the mean of the contributions that it names")


def named(contribution: Contribution) -> str:
    return f"samples [{contribution.first}, {contribution.end}) of {contribution.peer}"
