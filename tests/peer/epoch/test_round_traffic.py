"""What a peer holds of the attempts at an epoch: whatever it was ready for, until a commit. Bulk traffic is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

import peer.epoch.round_traffic
from peer.epoch.round_traffic import DriftedError, RoundTraffic
from protocols.errors import BadMessageError
from protocols.gradients.aggregation import weighted_mean
from protocols.gradients.codecs import CODECS
from protocols.gradients.slices import ResultLayout, Slices
from protocols.round.plans import MemberPlan, Plan, member_plan_of
from protocols.round.records import Averages, Ballot, Contribution, Shard, ShardResult
from protocols.transport.bandwidth import Bandwidth

PARENT, ELEMENTS, EPOCH = "a" * 64, 8 * 1024, 2
OUTCOME = ResultLayout(Slices.of(ELEMENTS), EPOCH, CODECS["fp32"], value_bytes=4)
MINE = bytes(OUTCOME.total_bytes - OUTCOME.averaged_bytes)  # canonical values
OFF = b"\xff" * len(MINE)
GIVEN = Contribution("ann", 1, 0, 4, PARENT, 2.0)


class JobQueue:
    async def run(self, work: Callable[[], Any]) -> Any:
        done = work()
        await asyncio.sleep(0)
        return done


def round_traffic(excess: Callable[[], dict[str, float]] = dict) -> RoundTraffic:
    replica = SimpleNamespace(
        slice_values=lambda parent: MINE, layout=lambda epoch: OUTCOME, refused=lambda plan, result: excess()
    )
    return RoundTraffic("ann", SimpleNamespace(bandwidth=Bandwidth()), replica, JobQueue(), weighted_mean)  # type: ignore[arg-type]


def attempt(number: int) -> MemberPlan:
    shards = (Shard("bob", "h:1", 0, ELEMENTS),)
    ballot = Ballot(EPOCH, PARENT, number, "bob")
    return member_plan_of(Plan("b" * 64, ballot, ("ann", "bob"), ("ann", "bob"), shards, "fp32", 10.0, 1), "ann")


def averages(number: int) -> Averages:
    return Averages((GIVEN,), (ShardResult(0, ELEMENTS, f"{number}" * 64, 1.0),))


@pytest.fixture(autouse=True)
def coming_to(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """What each attempt comes to beyond its averages; nothing has drifted unless a test says so."""
    canonical: dict[int, bytes] = {}

    async def all_reduce(plan: MemberPlan, *_: Any, **__: Any) -> tuple[Averages, memoryview]:
        await asyncio.sleep(0)
        number = plan.ballot.attempt
        return averages(number), memoryview(bytes([number]) * OUTCOME.averaged_bytes + canonical.get(number, MINE))

    monkeypatch.setattr(peer.epoch.round_traffic, "all_reduce", all_reduce)
    return canonical


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_an_attempt_that_drifted_does_not_cost_what_an_earlier_one_came_to(coming_to: dict[int, bytes]) -> None:
    """Its averages may yet be finished by a third, or a commit of them be on its way."""
    coming_to[2] = OFF

    async def work() -> None:
        ours = round_traffic(lambda: {"bob": 7.0})
        await ours.run(attempt(1), GIVEN, b"")
        with pytest.raises(DriftedError):
            await ours.run(attempt(2), GIVEN, b"")
        assert ours.averaged(averages(1))[0] == 1

    run(work())


def test_neither_does_one_that_is_stopped_once_all_is_there(coming_to: dict[int, bytes]) -> None:
    coming_to[2] = OFF  # by rounding only: it is looked at on the training thread, and the attempt ends meanwhile

    async def work() -> None:
        ours = round_traffic(lambda: ours.stop(attempt(2).digest) or {})  # type: ignore[func-returns-value]
        await ours.run(attempt(1), GIVEN, b"")
        task = asyncio.create_task(ours.run(attempt(2), GIVEN, b""))
        ours.began(attempt(2).digest, task)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ours.averaged(averages(1))[0] == 1

    run(work())


def test_an_attempt_that_is_over_before_its_exchange_began_never_begins() -> None:
    async def work() -> None:
        ours = round_traffic()
        task = asyncio.create_task(ours.run(attempt(1), GIVEN, b""))
        ours.began(attempt(1).digest, task)
        ours.stop(attempt(1).digest)
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(BadMessageError, match="another plan"):
            ours.averaged(averages(1))

    run(work())


def test_what_was_committed_is_held_no_longer() -> None:
    """The donor has it: here it would be one vector more while the next round runs."""

    async def work() -> None:
        ours = round_traffic()
        await ours.run(attempt(1), GIVEN, b"")
        assert ours.averaged(averages(1))[0] == 1
        ours.committed(attempt(1).digest)
        with pytest.raises(BadMessageError, match="another plan"):
            ours.averaged(averages(1))

    run(work())
