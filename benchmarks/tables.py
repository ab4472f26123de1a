"""What all benchmarks say alike: the machine, tables, errors, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.crew import CrewError
from protocols.errors import DugnadError
from protocols.host.interrupts import EXIT_INTERRUPTED

WIDTH = 1000  # of what is written to a file: as wide as a table wants to be


def machine() -> dict[str, Any]:
    models = {line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")}
    return {
        "cpu": ", ".join(sorted(models)) or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average": round(psutil.getloadavg()[0], 1),
    }


def _cpuinfo() -> list[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:  # noqa: PTH123
        return list(lines)
    return []


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column names things, the others are numbers."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def show(result: dict[str, Any], tables: Sequence[Table], *, as_json: bool) -> None:
    """One object on standard output, or tables there."""
    if as_json:
        print(json.dumps(result))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for drawn in tables:
        console.print(drawn)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ending_like_ctrl_c() -> Iterator[None]:
    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    # SIGINT as well: a shell without job control starts what it puts in the background with that ignored.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(work: Callable[[], None]) -> NoReturn:
    """Ends the process: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        with _ending_like_ctrl_c():
            work()
    except KeyboardInterrupt:
        say("interrupted; all processes are ended")
        sys.exit(EXIT_INTERRUPTED)
    except CrewError as error:
        say(f"error: {error}")
        sys.exit(1)
    except DugnadError as error:
        say(f"error: {error}\n{error.remedy}")
        sys.exit(error.exit_code)
    sys.exit(0)
