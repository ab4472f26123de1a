"""Handle Ctrl-C in two stages: the first asks the process to leave in order, the second ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130


@contextmanager
def two_stage_interrupts(leave: Callable[[], None], restore_terminal: Callable[[], None]) -> Iterator[None]:
    """While entered, call `leave` at the first SIGINT or SIGTERM. At the second, call `restore_terminal` and exit with 130.

    Only on the main thread.
    """
    left = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal left
        if left:
            restore_terminal()
            os._exit(EXIT_INTERRUPTED)  # the children notice and end, see child_process.py
        left = True
        leave()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
