"""The asyncio loop that networking runs on, beside the thread that trains (or watches)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN_S = 0.5


class NetworkThread:
    """A context manager: the loop runs from entry to exit; what still runs at exit is cancelled."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="network", daemon=True)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there and wait for it here. An interrupt of the wait cancels it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def __enter__(self) -> NetworkThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._cancel_rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _cancel_rest(self) -> None:
        await cancel_all(task for task in asyncio.all_tasks() if task is not asyncio.current_task())


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Returns when all have ended. Who does not is cancelled again: before Python 3.12, asyncio.wait_for loses a cancellation
    that comes together with what it waits for."""
    rest = set(tasks)
    while rest:
        for task in rest:
            task.cancel()
        _, rest = await asyncio.wait(rest, timeout=AGAIN_S)
