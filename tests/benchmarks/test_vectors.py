"""The exact mean that a benchmark's averages are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.vectors import Vector, contribution, largest_excess, write_noise
from protocols.gradients.codecs import CODECS

ELEMENTS = 5000
RANKS = (0, 1, 2)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    write_noise(tmp_path / "noise", ELEMENTS)
    return tmp_path / "noise"


def given(noise: Path, turn: int) -> list[Vector]:
    return [contribution(noise, ELEMENTS, rank, turn, 0, ELEMENTS) for rank in RANKS]


def test_a_part_of_a_contribution_is_that_part_of_the_whole(noise: Path) -> None:
    whole = contribution(noise, ELEMENTS, 2, 5, 0, ELEMENTS)
    parts = [contribution(noise, ELEMENTS, 2, 5, start, start + 1000) for start in range(0, ELEMENTS, 1000)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, contribution(noise, ELEMENTS, 2, 6, 0, ELEMENTS))


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_rounding_is_allowed(noise: Path, name: str) -> None:
    codec = CODECS[name]
    mean = np.mean([codec.decode(codec.encode(vector), ELEMENTS) for vector in given(noise, 1)], axis=0, dtype=np.float32)
    assert 0.01 < largest_excess(codec.decode(codec.encode(mean), ELEMENTS), noise, RANKS, 1, name) <= 1


def test_one_missing_contribution_to_one_value_is_seen(noise: Path) -> None:
    vectors = given(noise, 1)
    mean = np.mean(vectors, axis=0, dtype=np.float32)
    at = int(np.abs(vectors[1]).argmax())
    mean[at] = (vectors[0][at] + vectors[2][at]) / 2
    assert largest_excess(mean, noise, RANKS, 1, "fp16") > 1


def test_another_rounds_average_is_seen(noise: Path) -> None:
    assert largest_excess(np.mean(given(noise, 1), axis=0, dtype=np.float32), noise, RANKS, 2, "fp16") > 1


def test_a_value_that_is_no_number_is_seen(noise: Path) -> None:
    mean = np.mean(given(noise, 1), axis=0, dtype=np.float32)
    mean[3] = np.nan
    assert largest_excess(mean, noise, RANKS, 1, "fp16") > 1
