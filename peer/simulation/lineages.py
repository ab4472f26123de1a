"""What the observer works out for itself: the one state, the one weight and the samples that each lineage may have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from peer.simulation.feedback import Feedback
from peer.simulation.problem import Problem, State
from peer.simulation.world import World
from protocols.gradients.codecs import CODECS
from protocols.round.records import Commit, Contribution

Sample = tuple[str, int]  # (peer, incarnation)


@dataclass
class Lineage:
    digest: str
    epoch: int
    weight: int
    state: State
    samples: dict[Sample, tuple[tuple[int, int], ...]]
    parent: str = ""
    result_sha256: str = ""

    def holds(self, c: Contribution) -> bool:
        return (c.first, c.end) in self.samples.get((c.peer, c.incarnation), ())


class Lineages:
    def __init__(self, world: World, genesis: str, feedback: Feedback, problem: Problem, *, overlap: bool) -> None:
        self._world, self._feedback, self._problem, self._overlap = world, feedback, problem, overlap
        feedback.weights_at = lambda lineage: self.known[lineage].state.weights
        self.known = {genesis: Lineage(genesis, 0, 0, State.of(problem.device()), {})}
        self.times: dict[str, float] = {}  # when each was first applied by anybody

    def is_ancestor(self, digest: str, of: str) -> bool:
        """Whether `digest` is on the lineage `of`, or is it."""
        return digest == of or digest in self.back_from(of)

    def back_from(self, digest: str) -> Iterator[str]:
        """The lineage `digest` and those that it came by, the newest first."""
        while digest in self.known:
            yield digest
            digest = self.known[digest].parent

    def applied(self, who: str, commit: Commit, result: bytes, held: State | None) -> None:
        """Somebody stepped by these bytes: the first time the lineage is worked out from them, later they must be the same.

        `held`: the state that counts instead, because the members of the commit had drifted, or nobody else can work it out.
        """
        lineage = self.known.get(commit.digest)
        if lineage is None:
            self.known[commit.digest] = self._first_applied(commit, result, held)
            self.times[commit.digest] = self._world.now
        elif hashlib.sha256(result).hexdigest() != lineage.result_sha256:
            self._world.violated("1 bytes", f"{who} applies other bytes for {commit.digest[:8]} than others did")

    def _first_applied(self, commit: Commit, result: bytes, held: State | None) -> Lineage:
        parent = self.known[commit.ballot.parent]
        samples = dict(parent.samples)
        bases = {parent.digest, parent.parent} if self._overlap else {parent.digest}
        for c in commit.contributions:
            if c.base not in bases:
                what = f"{range_of(c)} of {c.peer} was drawn at {c.base[:8]}, {parent.digest[:8]} is next"
                self._world.violated("2 base", what)
            ranges = samples.get((c.peer, c.incarnation), ())
            if any(c.first < end and first < c.end for first, end in ranges):
                self._world.violated("2 once", f"samples {range_of(c)} of {c.peer} enter a second commit of one lineage")
            samples[c.peer, c.incarnation] = (*ranges, (c.first, c.end))
        averaged = self._checked_bytes(commit, result)
        self._feedback.check_mean(commit, CODECS[commit.codec], averaged)
        weight = parent.weight + commit.samples
        if commit.total_samples != weight:
            self._world.violated("2 weight", f"{commit.digest[:8]} claims {commit.total_samples} samples, and has {weight}")
        state = held
        if state is None:
            assert self._problem.stepped is not None
            state = self._problem.stepped(parent.state, commit, averaged, CODECS[commit.codec])
        sha256 = hashlib.sha256(result).hexdigest()
        return Lineage(commit.digest, parent.epoch + 1, weight, state, samples, parent.digest, sha256)

    def _checked_bytes(self, commit: Commit, result: bytes) -> bytes:
        """The averaged vector alone."""
        lies = self._problem.layout(commit.ballot.epoch, CODECS[commit.codec])
        for shard in commit.shards:
            averaged, canonical = lies.parts(shard.start, shard.stop)
            if blake3(result[averaged] + result[canonical]).hexdigest() != shard.digest:
                self._world.violated("1 bytes", f"the bytes of {commit.digest[:8]} are not those that it names")
        return result[: lies.averaged_bytes]


def range_of(contribution: Contribution) -> str:
    return f"[{contribution.first}, {contribution.end})"
