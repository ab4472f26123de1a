"""Handle Ctrl-C in two stages: the first asks the process to leave in order, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130


@contextmanager
def two_stage_interrupts(
    leave: Callable[[], None], restore_terminal: Callable[[], None], *, echo_s: float = 0.0
) -> Iterator[None]:
    """While entered, call `leave` at the first SIGINT or SIGTERM. At the second, call `restore_terminal` and exit with 130.

    `echo_s`: a signal within so many seconds after the first is the same one, passed on by a parent process.
    Only on the main thread.
    """
    left_at: float | None = None

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal left_at
        now = time.monotonic()
        if left_at is None:
            left_at = now
            leave()
        elif now > left_at + echo_s:
            restore_terminal()
            os._exit(EXIT_INTERRUPTED)  # the children notice and end, see child_process.py

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Leaving:
    """What the first Ctrl-C does, in a process that can leave in order during some parts of its life only."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._leave: Callable[[], None] | None = None

    def ask(self) -> None:
        """From the signal's handler. Where the process cannot leave in order, this raises KeyboardInterrupt; Python loses that
        in a destructor, so that the next part must look at `asked`, as `by` does."""
        self.asked.set()
        if self._leave is None:
            raise KeyboardInterrupt
        self._leave()

    @contextmanager
    def by(self, leave: Callable[[], None]) -> Iterator[None]:
        """While entered, whoever asks calls `leave`; at once if somebody has asked before."""
        self._leave = leave
        try:
            if self.asked.is_set():
                leave()
            yield
        finally:
            self._leave = None
