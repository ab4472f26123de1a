"""Which process of a peer this is, as torchrun says in the environment. Imports no torch: it is asked before anything else."""

from __future__ import annotations

import os

from protocols.errors import UsageError


def rank() -> int:
    """Of this process, as torchrun numbers them; 0 without torchrun. Raises UsageError for a group that spans computers."""
    if size() != int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise UsageError("torchrun spreads this peer over several computers", remedy="Start a peer of its own on each computer.")
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes make up this peer."""
    return int(os.environ.get("WORLD_SIZE", "1"))
