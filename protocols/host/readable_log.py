"""A log for people: what the screen said and what went wrong, with times, in a file that does not grow for ever."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from protocols.errors import DiskError
from protocols.host.terminal import printable

FILE_BYTES, OLDER_FILES = 1 << 20, 2
MAX_LINE = 2000

screen = logging.getLogger("dugnad.screen")
"""What a person was shown goes here as well."""


class CleanFormatter(logging.Formatter):
    """Lines without control characters: parts of a message may come from another machine, and a terminal obeys some of them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line, MAX_LINE) for line in super().format(record).split("\n"))


@contextmanager
def readable_log(path: Path) -> Iterator[None]:
    """While entered, `path` takes what `screen` is told, and warnings of all libraries. Times are ISO 8601 in UTC.

    On a terminal the warnings leave the screen alone meanwhile. Raises DiskError when the file cannot be opened.
    """
    try:
        handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=OLDER_FILES, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"the log {path} cannot be written: {error.strerror}", remedy="Choose another folder.") from error
    formatter = CleanFormatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk costs lines of the log, and nothing else
    root = logging.getLogger()
    quiet = [other for other in root.handlers if isinstance(other, logging.StreamHandler)] if sys.stderr.isatty() else []
    for other in quiet:
        root.removeHandler(other)
    for logger in (root, screen):
        logger.addHandler(handler)
    before = (screen.level, screen.propagate)
    screen.setLevel(logging.INFO)
    screen.propagate = False
    try:
        yield
    finally:
        screen.setLevel(before[0])
        screen.propagate = before[1]
        for logger in (root, screen):
            logger.removeHandler(handler)
        for other in quiet:
            root.addHandler(other)
        handler.close()
