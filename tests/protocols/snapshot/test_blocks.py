"""Values of two snapshots are the same up to rounding, or they are not."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import save

from protocols.errors import BadMessageError
from protocols.snapshot.blocks import Layout, differ

NAMES = frozenset({"w", "b"})
SAID: dict[str, Any] = {"header": {"epoch": 3, "commit": "ab"}, "optimizer_groups": [{"lr": 0.1}], "optimizer_scalars": {}}


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "parameters.w": torch.randn(3000, generator=draw),
        "parameters.b": torch.randn(5, generator=draw),
        "parameters.mean": torch.zeros(4),
        "optimizer.w.exp_avg": torch.randn(3000, generator=draw) * 1e-4,
        "optimizer.w.step": torch.tensor(7.0),
    }


def snapshot(said: dict[str, Any] = SAID, **change: torch.Tensor) -> bytes:
    named = {name.replace("__", "."): tensor for name, tensor in change.items()}
    made: bytes = save({**tensors(), **named}, metadata={"dugnad": json.dumps(said)})
    return made


def different(other: bytes, steps: int = 1) -> str:
    mine = snapshot()
    here, there = Layout.of(mine), Layout.of(other)
    assert here.fits(there)
    return differ(here, 0, mine[here.data_start :], other[there.data_start :], names=NAMES, steps=steps)


def test_rounding_is_no_difference_and_more_than_that_is() -> None:
    weights = tensors()["parameters.w"]
    assert different(snapshot()) == ""
    assert different(snapshot(parameters__w=weights * (1 + 2**-21))) == ""
    changed = weights.clone()
    changed[2999] += 1e-3
    assert different(snapshot(parameters__w=changed)) == "parameters.w"
    assert different(snapshot(parameters__w=changed), steps=1000) == "", "after many steps that is rounding"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_differs(value: float) -> None:
    changed = tensors()["optimizer.w.exp_avg"]
    changed[0] = value
    assert different(snapshot(optimizer__w__exp_avg=changed)) == "optimizer.w.exp_avg"


def test_a_counter_that_differs_is_told_and_a_buffer_is_each_machines_own() -> None:
    assert different(snapshot(optimizer__w__step=torch.tensor(8.0))) == "optimizer.w.step"
    assert different(snapshot(parameters__mean=torch.ones(4))) == ""


def test_a_part_that_begins_within_a_value_is_compared_from_the_next() -> None:
    mine, other = snapshot(), snapshot(parameters__w=tensors()["parameters.w"] + 1)
    layout = Layout.of(mine)
    _, _, start, stop = layout.tensors["parameters.w"]
    for first, end, found in (
        (start + 3, start + 6, ""),
        (start + 3, stop - 1, "parameters.w"),
        (start + 9, start + 17, "parameters.w"),
    ):
        parts = [data[layout.data_start + first : layout.data_start + end] for data in (mine, other)]
        assert differ(layout, first, parts[0], parts[1], names=NAMES, steps=1) == found


def test_a_state_that_says_something_else_does_not_fit() -> None:
    mine = Layout.of(snapshot())
    assert mine.fits(Layout.of(snapshot({**SAID, "header": {"epoch": 3, "commit": "cd"}}))), "a commit may have more votes"
    assert mine.fits(Layout.of(snapshot({**SAID, "optimizer_groups": [{"lr": 0.1 + 1e-15}]})))
    assert not mine.fits(Layout.of(snapshot({**SAID, "optimizer_groups": [{"lr": 0.2}]})))
    assert not mine.fits(Layout.of(snapshot({**SAID, "header": {"epoch": 4}})))
    assert not mine.fits(Layout.of(snapshot(parameters__b=torch.zeros(6))))


@pytest.mark.parametrize("beginning", [b"", b"\xff" * 64, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"{}"])
def test_a_header_that_cannot_be_read_is_a_bad_message(beginning: bytes) -> None:
    with pytest.raises(BadMessageError):
        Layout.of(beginning)
