"""A process of a benchmark: it does what lines of JSON on standard input say, and answers each with a line.

It ends, with all that it started, when standard input ends: so nothing outlives the benchmark, however that ended.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO


def serve_forever(make: Callable[[], Any]) -> None:
    """`make()` gives the object whose methods are called."""
    answers = _private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends it
    import torch

    torch.set_num_threads(1)  # as many peers as cores, or more, share the machine
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        served = make()
    except Exception as error:  # noqa: BLE001  as below
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    while True:
        command, arguments = json.loads(lines.get())
        try:
            answer = {"answer": getattr(served, command)(*arguments)}
        except Exception as error:  # noqa: BLE001  whatever an engine raises: it is shown to whoever runs the benchmark
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    # Not through sys.stdin: whoever forks while a thread waits there inherits its lock, and hivemind's children close it.
    rest = b""
    while data := os.read(0, 1 << 16):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            lines.put(line.decode())
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _private_stdout() -> TextIO:
    """The stream for answers; whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
