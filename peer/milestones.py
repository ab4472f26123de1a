"""When a peer reached each step of its start, for `python -m benchmarks.join` and for whoever reads its log."""

from __future__ import annotations

import time
from typing import Literal

Step = Literal[
    "called", "enrolled", "files_fetched", "imported", "agreed", "model_built", "tuned", "reachability_known", "discovery_started"
]
"""In the order in which a peer comes to them."""


class Milestones:
    """Unix seconds by step. A peer that goes on after a pause keeps those of its first start."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def reached(self, step: Step) -> None:
        self.times.setdefault(step, time.time())
