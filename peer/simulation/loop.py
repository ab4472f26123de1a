"""An asyncio event loop in virtual time: what one simulated process runs its tasks on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from functools import partial
from typing import Any

from peer.simulation.clock import Clock
from peer.simulation.world import Owner, World

MAX_FINALLY = 16


class VirtualLoop(asyncio.AbstractEventLoop):
    """Timers are events of the world, by the machine's own clock. Ready callbacks run in the event that made them ready."""

    def __init__(self, world: World, owner: Owner, clock: Clock, failed: Callable[[BaseException], None]) -> None:
        """`failed` is called with an exception that nobody took."""
        self._world = world
        self._owner = owner
        self._clock = clock
        self._failed = failed
        self._ready: deque[asyncio.Handle] = deque()
        self._planned = False  # an event that runs what is ready
        self._tasks: list[asyncio.Task[Any]] = []

    # -- what the world calls ----------------------------------------------------------------------------------------------------

    def run_ready(self) -> None:
        """Run callbacks until none is ready. No time passes."""
        self._planned = False
        if not self._ready:
            return
        with self.running():
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, this is the running loop."""
        asyncio.events._set_running_loop(self)
        try:
            yield
        finally:
            asyncio.events._set_running_loop(None)

    def dispose(self) -> None:
        """Close the coroutines that never ended, so that nothing of them runs later."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with self.running():
                    _close(task.get_coro())
        self._tasks.clear()
        self._ready.clear()

    # -- what asyncio calls ------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._clock.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if self._world.current is not self._owner and not self._planned:
            self._planned = True
            self._world.at(0.0, self._owner, lambda: None)  # after each event of its owner the loop runs
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(self.time() + delay, callback, args, self, context)
        self._world.at(self._clock.world_s(max(0.0, delay)), self._owner, partial(self._ready.append, timer))
        return timer

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coroutine: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=self, name="simulated")
        self._tasks.append(task)
        if len(self._tasks) > 512:
            self._tasks = [it for it in self._tasks if not it.done()]
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """At once: no thread runs beside a simulated process."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  whoever waits for the result is told
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failed(context.get("exception") or RuntimeError(context["message"]))

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False


def _close(coroutine: Any) -> None:
    """Also one that waits in a finally, perhaps in several: each takes another attempt."""
    for _ in range(MAX_FINALLY):
        with contextlib.suppress(RuntimeError):
            coroutine.close()
            return
