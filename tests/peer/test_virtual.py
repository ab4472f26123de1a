"""The simulator's loop ends what still runs on it."""

from __future__ import annotations

import asyncio
import gc

from tests.peer.virtual import Net


def test_a_task_that_waits_in_its_finally_blocks_is_ended_with_its_loop() -> None:
    """Whatever were left would run when memory is collected, outside of any loop."""
    ends: list[str] = []

    async def waits() -> None:
        try:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(1.0)
        finally:
            ends.append("inner")
            await asyncio.sleep(1.0)
            ends.append("never: the loop is over")

    with Net() as net:
        task = net.node("ann").start(waits())
        net.world.run_until(1.0)
    assert ends == ["inner"]
    assert task.get_coro().cr_frame is None, "it is closed"
    del task
    gc.collect()
