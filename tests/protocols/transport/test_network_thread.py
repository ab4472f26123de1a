"""Ending what runs on the network's thread."""

from __future__ import annotations

import asyncio

from protocols.transport.network_thread import cancel_all


def test_who_loses_a_cancellation_is_cancelled_again() -> None:
    async def stubborn(losses: list[int]) -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if not losses:
                    raise
                losses.pop()

    async def fails() -> None:
        raise ValueError

    async def work() -> None:
        left = [1, 1]
        tasks = [asyncio.create_task(it) for it in (stubborn(left), stubborn([]), fails())]
        await asyncio.sleep(0)
        await cancel_all(tasks)
        assert left == []
        assert all(task.done() for task in tasks)
        assert isinstance(tasks[2].exception(), ValueError)

    asyncio.run(asyncio.wait_for(work(), 30))
