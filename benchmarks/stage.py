"""Where the peers of a benchmark run: on loopback, or in a namespace each on shaped links. And the command lines that say so."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.engines.base import PeerSetup
from benchmarks.links import Link, check, parse_links
from benchmarks.namespaces import Shaped
from protocols.identity import Authority


def parser_of(module: str, purpose: str | None, *examples: str) -> argparse.ArgumentParser:
    """The command line of `benchmarks.<module>`, with --json."""
    it = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=purpose,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n  ".join(["examples:", *examples]) if examples else None,
    )
    it.add_argument("--json", action="store_true", help="one object on standard output")
    return it


def add_links(parser: argparse.ArgumentParser, whose: str) -> None:
    form = "up/down Mbit/s x peers, as in 200/200x4,100/100x8a: a for auxiliary, c for client mode; needs root"
    parser.add_argument("--links", help=f"{whose}: {form}")


def add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", type=int, default=4, help="how many, on loopback")
    add_links(parser, "peers on shaped links instead")


def checked_links(parser: argparse.ArgumentParser, text: str) -> tuple[Link, ...]:
    """Ends the process with a sentence and code 2 when they make no sense, or cannot be made."""
    try:
        links = parse_links(text)
    except ValueError as error:
        parser.error(f"argument --links: {error}")
    if os.geteuid() != 0:
        parser.error("--links makes network namespaces and shapes them, which only root may do: run this with sudo")
    return links


def links_of(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> tuple[Link, ...]:
    """Of the options of `add_peers`. Ends the process as checked_links does."""
    if asked.links:
        return checked_links(parser, asked.links)
    links = (Link(),) * int(asked.peers)
    try:
        check(links)
    except ValueError as error:
        parser.error(f"argument --peers: {error}")
    return links


class Stage:
    """A context manager: a folder that all processes share, and their places on the network."""

    def __init__(self, links: Sequence[Link], say: Callable[[str], None]) -> None:
        self._channels = tuple(links)
        self._say = say
        self._stack = contextlib.ExitStack()
        self.addresses: tuple[str, ...] = ("127.0.0.1",) * len(links)
        self.under: list[tuple[str, ...]] = [()] * len(links)  # what runs a command in the place of that rank
        self.device = "lo"
        self.network: dict[str, Any] = {}  # what the links were measured to carry

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dugnad-benchmark-")))
            Authority.load_or_create(self.folder)
            if self._channels[0].up_mbit:
                shaped = stack.enter_context(Shaped(self._channels))
                self.addresses, self.device = shaped.addresses, shaped.device
                self.under = [shaped.inside(rank) for rank in range(len(self._channels))]
                self.network = shaped.verify(self._say)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def setups(self, params: int, codec: str, split: str) -> list[PeerSetup]:
        return [
            PeerSetup(rank, self._channels, address, self.device, params, codec, split, self.folder)
            for rank, address in enumerate(self.addresses)
        ]
