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
_HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none


@contextmanager
def two_stage_interrupts(
    leave: Callable[[], None], restore_terminal: Callable[[], None], *, echo_s: float = 0.0
) -> Iterator[None]:
    """While entered, call `leave` at the first SIGINT, SIGTERM or SIGHUP. At the second, call `restore_terminal`, exit with 130.

    A terminal that is closed sends SIGHUP, and its shell sends it once more, so that a second SIGHUP is none. `nohup` has it
    ignored. `echo_s`: a signal within so many seconds after the first is the same one, passed on by a parent process.
    Only on the main thread.
    """
    left_at: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal left_at
        now = time.monotonic()
        if left_at is None:
            left_at = now
            leave()
        elif number != _HANG_UP and now > left_at + echo_s:
            restore_terminal()
            os._exit(EXIT_INTERRUPTED)  # the children notice and end, see child_process.py

    numbers = [signal.SIGINT, signal.SIGTERM]
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN:
        numbers.append(_HANG_UP)
    before = {number: signal.signal(number, stop) for number in numbers}
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
