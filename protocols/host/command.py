"""Run a `dugnad` command: print an error in one or two lines, and end with a meaningful exit code.

0 done, 1 failed, 2 wrong use or configuration, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

if sys.platform != "win32":
    import resource

from protocols.errors import DugnadError
from protocols.host.interrupts import EXIT_INTERRUPTED
from protocols.host.readable_log import CleanFormatter
from protocols.host.terminal import printable

OPEN_FILES = 65_536
MAX_LINE = 1000  # characters of an error: others may have written a part of it


def run_app(app: typer.Typer) -> NoReturn:
    """Run `app` on the command line's arguments and end the process."""
    _allow_open_files()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # grpc reads it on import; we report its failures as our own errors
    handler = logging.StreamHandler()
    handler.setFormatter(CleanFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        code = app(standalone_mode=False)
    except DugnadError as error:
        for text in filter(None, (f"error: {error}", error.remedy)):
            print(*(printable(line, MAX_LINE) for line in text.splitlines()), sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        show = getattr(error, "show", None)  # click's usage errors print themselves, with the nearest option
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


def _allow_open_files() -> None:
    """As many as the system lets this process have: every connection of others takes one, and the usual 1,024 are soon taken."""
    if sys.platform != "win32":
        soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def run_command(command: Callable[..., Any]) -> NoReturn:
    """Run a single command function on the command line's arguments and end the process."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app)
