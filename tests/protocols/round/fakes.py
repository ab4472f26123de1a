"""Real Member, Lead, Succession and ShardReduction machines, joined by a link that is a list.

No I/O, no threads, no clock but `Swarm.now`. Messages between two nodes keep their order; which pair is served next is drawn
from the seed, so that one seed is one schedule. Work that takes time elsewhere (freezing, applying, catching up) is a message
of a node to itself: a node can die before it is done.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from protocols.errors import BadMessageError
from protocols.gradients.aggregation import rule_named
from protocols.gradients.codecs import CODECS, Codec
from protocols.gradients.shard_average import CHUNK_ELEMENTS, ShardAverage, ShardRelay, shard_average_of
from protocols.gradients.slices import ResultLayout, Slices
from protocols.reasons import Reason
from protocols.round import leader_actions
from protocols.round import member as member_actions
from protocols.round.leader import DETECTION_S, Leader
from protocols.round.member import Member, Phase
from protocols.round.plans import MemberPlan, Plan, member_plan_of
from protocols.round.records import Averages, Candidate, Commit, Contribution, Hello, ShardResult, SignedCommit, Standing, Tip
from protocols.round.succession import Succession

RUN = "ab" * 32
TICK_S = 0.25
DISCOVERY_S = 5.0


def address_of(name: str) -> str:
    return f"{name}.example:1"


class Work(Protocol):
    """What a node trains: the samples drawn and not yet committed, and the state that commits change."""

    samples: int

    def draw(self, count: int) -> None: ...
    def freeze(self) -> tuple[int, int, float, bytes] | None: ...
    def restart(self) -> None: ...
    def layout(self, epoch: int) -> ResultLayout: ...
    def slice_values(self, parent: str) -> bytes: ...
    def refused(self, plan: MemberPlan, result: bytes) -> tuple[str, ...]: ...
    def apply(self, signed: SignedCommit, averaged: bytes) -> None: ...
    def adopt(self, other: Any) -> None: ...


class Arithmetic:
    """A stand-in for a model: a vector to which every averaged vector is added, and the list of what was added."""

    def __init__(self, peer: str, elements: int, codec: Codec) -> None:
        self.peer, self.codec = peer, codec
        self.first = self.end = 0
        self.state = np.zeros(elements)
        self.applied: tuple[str, ...] = ()
        self.fails_to_apply = False

    @property
    def samples(self) -> int:
        return self.end - self.first

    def draw(self, count: int) -> None:
        self.end += count

    @staticmethod
    def gradient(peer: str, counter: int, elements: int) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(f"{peer} {counter}".encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(elements)

    def freeze(self) -> tuple[int, int, float, bytes] | None:
        if not self.samples:
            return None
        total = sum(self.gradient(self.peer, counter, len(self.state)) for counter in range(self.first, self.end))
        return self.first, self.end, 1.0, self.codec.encode(np.asarray(total / self.samples))

    def restart(self) -> None:
        self.first = self.end

    def layout(self, epoch: int) -> ResultLayout:
        """Integers do not drift: no canonical values."""
        return ResultLayout(Slices.of(len(self.state)), epoch, self.codec, 0)

    def slice_values(self, parent: str) -> bytes:
        return b""

    def refused(self, plan: MemberPlan, result: bytes) -> tuple[str, ...]:
        return ()

    def apply(self, signed: SignedCommit, averaged: bytes) -> None:
        if self.fails_to_apply:
            raise RuntimeError("the device failed")
        self.state = self.state + self.codec.decode(averaged, len(self.state))
        self.applied = (*self.applied, hashlib.sha256(averaged).hexdigest())

    def adopt(self, other: Arithmetic) -> None:
        self.state, self.applied = other.state, other.applied
        self.fails_to_apply = False


@dataclass
class _Incoming:
    """The averaged shards of one plan, as they come down."""

    shards: dict[int, tuple[bytes, ShardResult, tuple[Contribution, ...]]] = field(default_factory=dict)


class Node:
    def __init__(
        self,
        swarm: Swarm,
        name: str,
        work: Work,
        *,
        reachable: bool,
        auxiliary: bool,
        incarnation: int,
        max_epochs: int | None,
    ) -> None:
        self.swarm, self.name, self.work = swarm, name, work
        self.alive = True
        me = Candidate(name, address_of(name) if reachable else "")
        self.hello = Hello(incarnation, auxiliary, me.address, me.address, name)
        self.member = Member(name, incarnation)
        self.succession = Succession(me)
        self.leader = Leader(
            me,
            run_digest=RUN,
            target_batch_size=swarm.target,
            elements=swarm.elements,
            codecs={swarm.codec.name: swarm.codec.encoded_bytes(swarm.elements)},
            max_epochs=max_epochs,
        )
        self.following = ""
        self.leader_heard_at = 0.0
        self.moved_bytes = 0
        self.encoded = b""
        self.commits: tuple[Commit, ...] = ()
        self.log: list[Any] = []  # GiveUp, CatchUp, NoteFailure as they come
        self.frozen_as: list[tuple[int, bytes]] = []  # (epoch, bytes) of every Freeze
        self.sent: list[tuple[MemberPlan, Contribution, bytes]] = []  # what every Reduce gave
        self.reductions: dict[tuple[str, int], ShardAverage | ShardRelay] = {}
        self.early: dict[str, list[tuple[str, int, Contribution | None, bytes]]] = {}
        self.waiting: dict[tuple[str, int], list[str]] = {}  # who opened a stream and has not got the average yet
        self.incoming: dict[str, _Incoming] = {}
        self.averaged: tuple[Averages | None, bytes] = (None, b"")
        self.waits_for_donor: Reason | None = None

    @property
    def epoch(self) -> int:
        return self.member.tip.epoch if self.member.tip is not None else -1

    @property
    def lineage(self) -> str:
        return self.member.tip.lineage if self.member.tip is not None else ""

    def reasons(self, kind: type[Any]) -> list[Reason]:
        return [entry.reason for entry in self.log if isinstance(entry, kind)]

    # -- events to the machines ----------------------------------------------------------------------------------------------

    def report(self) -> None:
        report = self.member.report(
            self.following,
            accumulated=self.work.samples,
            samples_per_second=10.0,
            step_s=0.1,
            moved_bytes=self.moved_bytes,
            upload_bytes_s=0.0,
            download_bytes_s=0.0,
        )
        if report is None:
            return
        if self.leader.active:
            self.perform(self.leader.reported(self.name, report, self.swarm.now))
        elif self.following:
            self.swarm.send(self.name, self.following, "report", report)

    def tick(self) -> None:
        now = self.swarm.now
        if self.waits_for_donor is not None:
            self._catch_up(self.waits_for_donor)
        self.perform(self.leader.tick(now))
        if self.following and self.following != self.name and now - self.leader_heard_at > DETECTION_S:
            self.lose_leader()
        others = [node for node in self.swarm.alive if node is not self and node.hello.reachable and node.member.tip is not None]
        if others and self.swarm.random.random() < TICK_S / DISCOVERY_S:
            tip = self.swarm.random.choice(others).member.tip
            assert tip is not None
            self.heard_standing(tip.standing)
        self.report()
        if self.leader.active:
            for peer in self.leader.followers:
                if peer != self.name:
                    self.swarm.send(self.name, peer, "heartbeat", self.leader.tip)
        self.follow()

    def follow(self) -> None:
        acting = self.succession.acting
        if acting is None or self.member.tip is None:
            return
        if acting.peer == self.name:
            if not self.leader.active and self.member.phase is not Phase.CATCHING_UP:
                self.following = self.name
                now = self.swarm.now
                self.perform([*self.leader.take_over(now), *self.leader.joined(self.name, self.hello, now)])
                self.report()
            return
        if self.leader.active or self.following == self.name:
            self.step_down()
        if self.following == acting.peer:
            return
        if self.following:
            self.swarm.leave(self.name, self.following)
        self.following = ""
        other = self.swarm.nodes.get(acting.peer)
        if other is None or not other.alive:
            self.succession.silent(acting.peer)
        elif not other.leader.active:
            if other.following:
                self.succession.heard(other.following)
            self.succession.silent(acting.peer)
        else:
            self.following, self.leader_heard_at = acting.peer, self.swarm.now
            other.perform(other.leader.joined(self.name, self.hello, self.swarm.now))
            self.report()

    def step_down(self) -> None:
        self.perform(self.leader.step_down())
        self.following = ""
        for node in self.swarm.alive:
            if node.following == self.name:
                node.lose_leader()

    def lose_leader(self) -> None:
        self.succession.silent(self.following)
        self.following = ""

    def heard_standing(self, theirs: Standing) -> None:
        if self.member.is_behind(theirs, self.following):
            self.perform(self.member.catch_up(Reason.BEHIND))

    def receive(self, source: str, kind: str, what: Any) -> None:
        now = self.swarm.now
        self.leader.heard(source, now)
        if source == self.following:
            self.leader_heard_at = now
        match kind:
            case "heartbeat":
                self.heard_standing(what.standing)
            case "report":
                self.heard_standing(what.standing)
                self.perform(self.leader.reported(source, what, now))
            case "answer":
                attempt = self.leader.attempt
                if isinstance(what, member_actions.Failed) and attempt is not None and attempt.plan.digest == what.plan_digest:
                    self.swarm.failed_pairs.append((attempt.plan.ballot.attempt, what.member, what.reducer))
                self.perform(self.leader.answer(source, what, now))
            case "plan":
                self.perform(self.member.on_plan(what))
            case "abort":
                self.perform(self.member.on_abort(*what))
            case "commit":
                self.perform(self.member.on_commit(what))
            case "ask":
                there = (self.member.tip, self.following, len(self.leader.followers.keys() - {self.name}))
                self.swarm.send(self.name, source, "whereabouts", there)
            case "whereabouts":
                tip, follows, followers = what
                if tip is None:  # it has just started: the service refuses, which is no answer
                    self.perform(self.leader.unreachable(source, now))
                else:
                    self.heard_standing(tip.standing)
                    self.perform(self.leader.answered(source, follows, followers))
            case "freeze":
                self._freeze()
            case "apply":
                self._apply(what)
            case "catch up":
                self._catch_up(what)
            case "up":
                self._take_up(source, *what)
            case "down":
                self._take_down(source, *what)
            case "broken":
                self.perform(self.member.reduce_failed(*what))
        self.swarm.happened(self)

    # -- the machines' actions -----------------------------------------------------------------------------------------------

    def perform(self, actions: list[Any]) -> None:
        for action in actions:
            self._act(action)

    def _act(self, action: Any) -> None:
        swarm = self.swarm
        match action:
            case member_actions.Freeze():
                swarm.send(self.name, self.name, "freeze", None)
            case member_actions.Reduce(plan, contribution):
                self._reduce(plan, contribution)
            case member_actions.StopReducing(plan_digest, _):
                for key in [key for key in self.reductions if key[0] == plan_digest]:
                    del self.reductions[key]
                self.incoming.pop(plan_digest, None)
            case member_actions.Send(to, answer):
                if isinstance(answer, member_actions.Accept):
                    self.report()
                if to == self.name:
                    self.receive(self.name, "answer", answer)
                elif to == self.following:
                    swarm.send(self.name, to, "answer", answer)
            case member_actions.Apply(signed):
                swarm.send(self.name, self.name, "apply", signed)
            case member_actions.Resume():
                self.work.restart()
                self.report()
            case member_actions.GiveUp():
                self.log.append(action)
            case member_actions.CatchUp(reason):
                self.log.append(action)
                self.work.restart()
                swarm.send(self.name, self.name, "catch up", reason)
            case leader_actions.Ask(peers):
                for peer in peers:
                    there = swarm.nodes.get(peer)
                    if there is None or not there.alive:
                        self.perform(self.leader.unreachable(peer, swarm.now))
                    elif there.hello.reachable:
                        swarm.send(self.name, peer, "ask", None)
            case leader_actions.SendPlan(to, plan):
                swarm.plans.append(plan)
                for peer in to:
                    swarm.send(self.name, peer, "plan", member_plan_of(plan, peer))
            case leader_actions.SendAbort(to, plan_digest, reason):
                for peer in to:
                    swarm.send(self.name, peer, "abort", (plan_digest, reason))
            case leader_actions.Announce(commit):
                swarm.announced.append(commit)
                for peer in self.leader.followers.keys() | {self.name}:
                    swarm.send(self.name, peer, "commit", SignedCommit(commit, b"signature", b"certificate"))
            case leader_actions.Reannounce(to):
                for peer in to:
                    swarm.send(self.name, peer, "commit", SignedCommit(self.commits[-1], b"signature", b"certificate"))
            case leader_actions.NoteFailure():
                self.log.append(action)
                swarm.failures.append(action)
            case leader_actions.Yield(_):
                self.succession.silent(self.name)
            case _:
                raise AssertionError(f"unknown action {action}")

    def _freeze(self) -> None:
        frozen = self.work.freeze()
        contribution = None
        if frozen is not None:
            first, end, loss, self.encoded = frozen
            contribution = Contribution(self.name, self.hello.incarnation, first, end, self.lineage, loss)
            self.frozen_as.append((self.epoch + 1, self.encoded))
        self.perform(self.member.frozen(contribution))

    def _apply(self, signed: SignedCommit) -> None:
        assert self.averaged[0] == signed.commit.averages, "Apply is of the averages that are here"
        try:
            self.work.apply(signed, self.averaged[1])
        except RuntimeError:
            self.perform(self.member.apply_failed())
            return
        self.commits = (*self.commits, signed.commit)
        tip = Tip.after(signed.commit)
        self.leader.follow(tip, signed.commit)
        self.succession.follow(tip)
        self.perform(self.member.applied())

    def _catch_up(self, reason: Reason) -> None:
        best, tip = self, None if self.work_is_lost or reason is Reason.DRIFT else self.member.tip
        for node in self.swarm.alive:
            theirs = node.member.tip
            if node is self or theirs is None or not node.hello.reachable or node.member.phase is Phase.CATCHING_UP:
                continue
            if tip is None or theirs.standing.heavier_than(tip.standing):
                best, tip = node, theirs
        if tip is None:
            self.waits_for_donor = reason
            return
        self.waits_for_donor = None
        if best is not self:
            self.work.adopt(best.work)
            self.commits = best.commits
        self.leader.follow(tip)
        self.succession.follow(tip)
        self.perform(self.member.adopted(tip))

    @property
    def work_is_lost(self) -> bool:
        return bool(getattr(self.work, "fails_to_apply", False))

    # -- bulk traffic --------------------------------------------------------------------------------------------------------

    def _reduce(self, plan: MemberPlan, contribution: Contribution | None) -> None:
        gives = self.encoded if contribution is not None else b""
        if plan.finishes is not None and plan.finishes == self.averaged[0]:
            gives = self.averaged[1]
        elif contribution is not None:
            self.sent.append((plan, contribution, self.encoded))
        self.incoming[plan.digest] = _Incoming()
        outcome, values = self.work.layout(plan.ballot.epoch), self.work.slice_values(plan.ballot.parent)
        for index, shard in enumerate(plan.shards):
            if shard.reducer == self.name:
                at, end = (outcome.canonical_bytes(0, element) for element in (shard.start, shard.stop))
                self.reductions[plan.digest, index] = shard_average_of(
                    plan, index, self.swarm.codec, self.swarm.rule, values[at:end]
                )
        for index, shard in enumerate(plan.shards):
            brings = plan.finishes is None or plan.gives or self.name == shard.reducer
            part = b"".join(outcome.chunks(gives, shard.start, shard.stop, CHUNK_ELEMENTS)) if brings else b""
            if (self.name, shard.reducer) in self.swarm.broken:
                broken = (plan.digest, Reason.REDUCER_LOST, self.name, shard.reducer)
                self.swarm.send(self.name, self.name, "broken", broken)
            else:
                self.swarm.send(self.name, shard.reducer, "up", (plan.digest, index, contribution, part))
        for source, index, given, part in self.early.pop(plan.digest, []):
            self._take_up(source, plan.digest, index, given, part)

    def _take_up(self, source: str, digest: str, index: int, contribution: Contribution | None, part: bytes) -> None:
        reduction = self.reductions.get((digest, index))
        if reduction is None:
            self.early.setdefault(digest, []).append((source, index, contribution, part))
            return
        waiting = self.waiting.setdefault((digest, index), [])
        waiting.append(source)
        if part:
            self.moved_bytes += len(part)
            try:
                reduction.open(source, contribution)
                while part:
                    size = reduction.expects(source)
                    reduction.feed(source, part[:size])
                    part = part[size:]
            except BadMessageError:
                self.perform(self.member.reduce_failed(digest, Reason.BAD_CHUNK, source, self.name))
                return
        if reduction.result is not None and reduction.contributions is not None:
            down = (digest, index, b"".join(reduction.averaged), reduction.result, reduction.contributions)
            while waiting:
                self.swarm.send(self.name, waiting.pop(), "down", down)

    def _take_down(
        self, source: str, digest: str, index: int, averaged: bytes, result: ShardResult, contributions: tuple[Contribution, ...]
    ) -> None:
        plan, incoming = self.member.plan, self.incoming.get(digest)
        if incoming is None or plan is None or plan.digest != digest:
            return
        assert plan.shards[index].reducer == source
        self.moved_bytes += len(averaged)
        incoming.shards[index] = (averaged, result, contributions)
        if len(incoming.shards) == len(plan.shards):
            parts = [incoming.shards[index] for index in range(len(plan.shards))]
            averages = Averages(parts[0][2], tuple(part[1] for part in parts))
            size = self.swarm.codec.encoded_bytes
            cut = [(part[0], size(part[1].stop - part[1].start)) for part in parts]
            result = b"".join(data[:behind] for data, behind in cut) + b"".join(data[behind:] for data, behind in cut)
            self.averaged = (averages, result)
            refused = self.work.refused(plan, result)
            self.perform(self.member.drifted(digest, refused) if refused else self.member.reduced(digest, averages))


class Swarm:
    """`target` samples make a batch. The first node added leads the genesis."""

    def __init__(self, *, target: int, elements: int = 4096, codec: str = "fp64", rule: str = "mean", seed: int = 0) -> None:
        print(f"seed {seed}")
        self.target, self.elements, self.codec, self.rule = target, elements, CODECS[codec], rule_named(rule)
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.plans: list[Plan] = []
        self.announced: list[Commit] = []
        self.failed_pairs: list[tuple[int, str, str]] = []  # (attempt, member, reducer) as the leader heard of them
        self.failures: list[leader_actions.NoteFailure] = []
        self.broken: set[tuple[str, str]] = set()  # (member, reducer) that cannot reach each other
        self.held: set[tuple[str, str]] = set()  # links that deliver nothing for now
        self.lost_kinds: set[tuple[str, str]] = set()  # (receiver, kind of message) never delivered
        self.watch: Callable[[Node], None] = lambda node: None
        self._queues: dict[tuple[str, str], deque[tuple[str, Any]]] = {}
        self.random = random.Random(seed)
        self.genesis: Tip | None = None

    def add(
        self,
        name: str,
        work: Work | None = None,
        *,
        reachable: bool = True,
        auxiliary: bool = False,
        incarnation: int = 1,
        max_epochs: int | None = None,
    ) -> Node:
        """A node at genesis, or, once commits were made, one that catches up first."""
        node = self.nodes[name] = Node(
            self,
            name,
            work if work is not None else Arithmetic(name, self.elements, self.codec),
            reachable=reachable,
            auxiliary=auxiliary,
            incarnation=incarnation,
            max_epochs=max_epochs,
        )
        if self.genesis is None:
            self.genesis = Tip.genesis(RUN, "00" * 32, node.succession._me, self.codec.name)
        for other in self.nodes.values():
            there = (n.succession._me for n in self.nodes.values() if n is not other and n.hello.reachable)
            other.succession.know(list(there))
        if self.announced:
            self.send(name, name, "catch up", Reason.BEHIND)
        else:
            node.leader.follow(self.genesis)
            node.succession.follow(self.genesis)
            node.perform(node.member.adopted(self.genesis))
        return node

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.alive]

    @property
    def leading(self) -> list[Node]:
        return [node for node in self.alive if node.leader.active]

    def send(self, source: str, target: str, kind: str, what: Any) -> None:
        self._queues.setdefault((source, target), deque()).append((kind, what))

    def happened(self, node: Node) -> None:
        self.watch(node)

    def settle(self, most: int = 20_000) -> None:
        """Deliver until nothing is under way."""
        for _ in range(most):
            ready = sorted(pair for pair, queue in self._queues.items() if queue and pair not in self.held)
            if not ready:
                return
            source, target = self.random.choice(ready)
            kind, what = self._queues[source, target].popleft()
            node = self.nodes.get(target)
            if node is None or not node.alive or (target, kind) in self.lost_kinds:
                continue
            node.receive(source, kind, what)
        raise AssertionError("the swarm does not come to rest")

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.now += TICK_S
            for node in self.alive:
                node.tick()
            self.settle()

    def draw(self, samples: Mapping[str, int]) -> None:
        """These nodes compute the gradients of so many samples more, unless they are frozen or gone."""
        for name, count in samples.items():
            node = self.nodes[name]
            if node.alive and node.member.phase is Phase.TRAINING:
                node.work.draw(count)
                node.report()

    def batch(self, samples: Mapping[str, int]) -> None:
        """Draw these samples; the batch is full when every one of them is reported, so that all of these peers are planned."""
        full = sum(samples.get(node.name, 0) + node.work.samples for node in self.alive)
        self.fill(full)
        self.draw(samples)

    def fill(self, target: int) -> None:
        self.target = max(target, 1)
        for node in self.nodes.values():
            node.leader.target_batch_size = self.target

    def kill(self, name: str, *, silently: bool = False) -> None:
        """`silently`: no connection breaks (a cable was pulled), so that only detection notices."""
        node = self.nodes[name]
        node.alive = False
        for pair in [pair for pair in self._queues if name in pair and pair[0] == name and not silently]:
            self._queues[pair].clear()
        if silently:
            return
        for other in self.alive:
            if other.following == name:
                other.lose_leader()
            if name in other.leader.followers:
                other.perform(other.leader.left(name, Reason.CONNECTION_LOST, self.now))

    def leave(self, name: str, leader: str) -> None:
        other = self.nodes[leader]
        if other.alive and name in other.leader.followers:
            other.perform(other.leader.left(name, Reason.CONNECTION_LOST, self.now))

    def follower(self) -> None:
        """Let time pass until everybody alive has found one leader and reported there."""
        for _ in range(60):
            if len(self.leading) == 1:
                leader = self.leading[0]
                followers = leader.leader.followers
                if all(node.name in followers and followers[node.name].report is not None for node in self.alive):
                    return
            self.tick()
        raise AssertionError(f"leads {[n.name for n in self.leading]}, followed: {[(n.name, n.following) for n in self.alive]}")

    def epoch(self, samples: Mapping[str, int], *, most: int = 400) -> None:
        """Draw what makes this epoch's batch, then let time pass until everybody alive has reached the next epoch together."""
        goal = max(node.epoch for node in self.alive) + 1
        self.follower()
        self.batch(samples)
        for _ in range(most):
            self.tick()
            at_rest = all(node.member.phase is Phase.TRAINING for node in self.alive)
            if at_rest and all(node.epoch >= goal for node in self.alive):
                self.check()
                return
            if at_rest and all(node.epoch < goal for node in self.alive):
                self.fill(sum(node.work.samples for node in self.alive))  # who died took samples along: others fill the batch
        raise AssertionError(
            f"epoch {goal} was not reached: " + ", ".join(f"{n.name} {n.epoch} {n.member.phase}" for n in self.alive)
        )

    def check(self) -> None:
        """One history, honest sums: invariants 1 and 2."""
        by_lineage: dict[str, list[Node]] = {}
        for node in self.alive:
            by_lineage.setdefault(node.lineage, []).append(node)
            seen: dict[tuple[str, int], int] = {}
            for commit in node.commits:
                for c in commit.contributions:
                    assert c.first >= seen.get((c.peer, c.incarnation), 0), f"samples of {c.peer} are committed twice"
                    seen[c.peer, c.incarnation] = c.end
        for nodes in by_lineage.values():
            applied = {node.work.applied for node in nodes if isinstance(node.work, Arithmetic)}
            assert len(applied) <= 1, "one lineage, different bytes"
