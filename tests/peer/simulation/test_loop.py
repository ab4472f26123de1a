"""The virtual event loop: asyncio's own tasks, locks and time-outs, on the time of one simulated machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from peer.simulation.clock import Clock
from peer.simulation.loop import VirtualLoop
from peer.simulation.world import World


class Process:
    """A process that runs what a test starts on it."""

    def __init__(self, world: World, skew: float = 1.0) -> None:
        self.alive, self.stopped_until = True, 0.0
        self.errors: list[BaseException] = []
        self.world = world
        self.clock = Clock(world)
        self.clock.run_at(skew)
        self.loop = VirtualLoop(world, self, self.clock, self.errors.append)  # type: ignore[abstract]

    def run_ready(self) -> None:
        self.loop.run_ready()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        with self.loop.running():
            return self.loop.create_task(work)


def noting(world: World, into: list[float], every_s: float) -> Callable[[], Coroutine[Any, Any, None]]:
    async def note() -> None:
        while True:
            await asyncio.sleep(every_s)
            into.append(world.now)

    return note


def test_a_sleep_takes_virtual_time_and_no_other() -> None:
    world = World(1)
    process, slept = Process(world), list[float]()
    task = process.start(noting(world, slept, 10.0)())
    world.run_until(35.0)
    assert len(slept) == 3 and slept == pytest.approx([10, 20, 30], rel=0.03)  # a clock runs a little wrong
    assert not task.done()
    process.loop.dispose()


def test_a_skewed_machines_timers_are_skewed() -> None:
    world = World(2)
    right, fast = Process(world), Process(world, skew=2.0)
    slept: dict[str, list[float]] = {"right": [], "fast": []}
    right.start(noting(world, slept["right"], 1.0)())
    fast.start(noting(world, slept["fast"], 1.0)())
    world.run_until(10.5)
    assert len(slept["right"]) == 10
    assert 19 <= len(slept["fast"]) <= 22
    for process in (right, fast):
        process.loop.dispose()


def test_nothing_of_a_killed_process_runs_on_and_others_go_on() -> None:
    world = World(3)
    one, other = Process(world), Process(world)
    slept: dict[str, list[float]] = {"one": [], "other": []}
    cleaned: list[str] = []

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            cleaned.append("up")

    one.start(noting(world, slept["one"], 1.0)())
    one.start(cleans_up())
    other.start(noting(world, slept["other"], 1.0)())
    world.run_until(3.5)
    one.alive = False
    world.run_until(10.5)
    assert (len(slept["one"]), len(slept["other"]), cleaned) == (3, 10, [])
    for process in (one, other):
        process.loop.dispose()


def test_a_stopped_process_goes_on_where_it_was() -> None:
    world = World(4)
    process, slept = Process(world), list[float]()
    process.start(noting(world, slept, 1.0)())
    world.run_until(2.5)
    process.stopped_until = 7.0
    world.run_until(6.9)
    assert len(slept) == 2
    world.run_until(8.5)
    assert len(slept) == 4 and slept[2] == 7.0
    process.loop.dispose()


def test_events_locks_conditions_and_time_outs_work_as_asyncios() -> None:
    world = World(5)
    process, heard = Process(world), list[str]()

    async def talk() -> None:
        event, queue, lock = asyncio.Event(), asyncio.Queue[str](), asyncio.Lock()

        async def other() -> None:
            async with lock:
                await asyncio.sleep(2)
            queue.put_nowait("said")
            event.set()

        task = asyncio.get_running_loop().create_task(other())
        await asyncio.sleep(0)
        assert lock.locked()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(event.wait(), 1)
        heard.append(await asyncio.wait_for(queue.get(), 5))
        await task
        heard.append(await asyncio.to_thread(lambda: "computed"))

    task = process.start(talk())
    world.run_until(10)
    task.result()
    assert heard == ["said", "computed"] and process.errors == []
    process.loop.dispose()


def test_an_error_that_nobody_takes_is_told() -> None:
    world = World(6)
    process = Process(world)

    async def fails() -> None:
        raise ValueError("of nobody")

    process.start(fails())
    world.run_until(1)
    process.loop.dispose()
    assert [str(error) for error in process.errors] == ["of nobody"]


def test_disposing_closes_what_waits_also_in_a_finally() -> None:
    """pytest turns a coroutine that was never awaited, or that ignores its end, into a failure."""
    world = World(7)
    process = Process(world)

    async def waits_for_ever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(1)

    process.start(waits_for_ever())
    world.run_until(1)
    process.start(waits_for_ever())  # never begun
    process.loop.dispose()
