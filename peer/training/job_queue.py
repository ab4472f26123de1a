"""Work that the network's thread hands to the training thread, where alone parameters and gradients are touched."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    act: Callable[[], Any]
    done: concurrent.futures.Future[Any]

    def run(self) -> None:
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.done.set_result(self.act())
        except Exception as error:  # noqa: BLE001  whoever handed the work over is told, and decides
            self.done.set_exception(error)


class JobQueue:
    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def put(self, act: Callable[[], T]) -> concurrent.futures.Future[T]:
        """From any thread; jobs run in the order in which they were put."""
        job = Job(act, concurrent.futures.Future())
        self._jobs.put(job)
        return job.done

    async def run(self, act: Callable[[], T]) -> T:
        """From the network's thread: the result, or the exception, of `act` on the training thread."""
        return await asyncio.wrap_future(self.put(act))

    def next(self, *, wait_s: float) -> Job | None:
        """On the training thread: the next job, waiting for at most `wait_s` seconds."""
        try:
            return self._jobs.get(timeout=wait_s) if wait_s else self._jobs.get_nowait()
        except queue.Empty:
            return None
