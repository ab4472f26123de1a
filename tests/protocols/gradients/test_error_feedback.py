from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.gradients.codecs import CODECS, Codec
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.round.records import Contribution
from tests.factories import contribution

ELEMENTS = 300
LOSSY = pytest.mark.parametrize("name", ["int8", "int4"])


def gradient(seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy((np.random.default_rng(seed).standard_normal(ELEMENTS) * scale).astype(np.float32))


@dataclass
class Given:
    gradient: torch.Tensor
    first: int
    end: int
    elements: int = ELEMENTS

    def mean(self, at: int, stop: int) -> torch.Tensor:
        return self.gradient[at:stop].clone()


def encode(error_feedback: ErrorFeedback, codec: Codec, gradient: torch.Tensor, first: int, end: int) -> bytes:
    encoded = error_feedback.encode(codec, Given(gradient, first, end))
    assert encoded is not None
    return bytes(encoded)


def values_of(name: str, encoded: bytes) -> np.ndarray:
    return CODECS[name].decode(encoded, ELEMENTS).astype(np.float64)


@LOSSY
@given(samples=st.lists(st.integers(1, 200), min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_what_one_contribution_loses_the_next_ones_give_whatever_their_weights(name: str, samples: list[int], seed: int) -> None:
    error_feedback, end = ErrorFeedback("ann", 1), 0
    owed, given_away = np.zeros(ELEMENTS), np.zeros(ELEMENTS)
    for index, count in enumerate(samples):
        first, end = end, end + count
        mean = gradient(seed + index)
        owed += mean.numpy().astype(np.float64) * count
        given_away += values_of(name, encode(error_feedback, CODECS[name], mean, first, end)) * count
        error_feedback.settle([contribution(first=first, end=end)])
    missing = values_of("fp32", encode(error_feedback, CODECS["fp32"], torch.zeros(ELEMENTS), end, end + 1))
    assert np.abs(given_away + missing - owed).max() <= 2.0**-7 * max(samples) * len(samples), "but for bfloat16's rounding"


@LOSSY
def test_a_constant_gradient_gets_through_even_where_it_is_smaller_than_a_step_of_the_scale(name: str) -> None:
    error_feedback, codec, total = ErrorFeedback("ann", 1), CODECS[name], np.zeros(ELEMENTS)
    small = torch.full((ELEMENTS,), 1e-3)
    small[::128] = 1.0  # sets the scale
    assert not values_of(name, codec.encode(small.numpy()))[1:100].any(), "alone it would never arrive"
    for epoch in range(500):
        total += values_of(name, encode(error_feedback, codec, small.clone(), epoch, epoch + 1))
        error_feedback.settle([contribution(first=epoch, end=epoch + 1)])
    assert total / 500 == pytest.approx(small.numpy(), rel=0.3)


@LOSSY
@pytest.mark.parametrize(
    "others",
    [
        pytest.param([], id="nobody's"),
        pytest.param([contribution(first=0, end=8, peer="bob")], id="another peer's"),
        pytest.param([contribution(first=0, end=8, incarnation=2)], id="another process's"),
        pytest.param([contribution(first=0, end=7)], id="of other samples"),
    ],
)
def test_a_commit_that_does_not_name_the_contribution_changes_nothing(name: str, others: list[Contribution]) -> None:
    codec, error_feedback = CODECS[name], ErrorFeedback("ann", 1)
    plain = codec.encode(gradient(2).numpy())
    encode(error_feedback, codec, gradient(1), 0, 8)
    assert encode(error_feedback, codec, gradient(2), 0, 8) == plain, "not before any commit either"
    encode(error_feedback, codec, gradient(1), 0, 8)
    error_feedback.settle(others)
    error_feedback.settle([contribution(first=0, end=8)])
    assert encode(error_feedback, codec, gradient(2), 8, 16) == plain
    error_feedback.settle([contribution(first=8, end=16)])
    assert encode(error_feedback, codec, gradient(2), 16, 24) != plain


@LOSSY
def test_what_was_kept_outlives_epochs_that_commit_without_this_peer(name: str) -> None:
    codec, twice, once = CODECS[name], ErrorFeedback("ann", 1), ErrorFeedback("ann", 1)
    for error_feedback in (twice, once):
        encode(error_feedback, codec, gradient(1), 0, 8)
        error_feedback.settle([contribution(first=0, end=8)])
    encode(twice, codec, gradient(5), 8, 16)
    twice.settle([])
    twice.settle([contribution(first=30, end=40, peer="bob")])
    assert encode(twice, codec, gradient(2), 16, 24) == encode(once, codec, gradient(2), 16, 24)


@LOSSY
def test_what_is_forgotten_is_not_given(name: str) -> None:
    codec, error_feedback = CODECS[name], ErrorFeedback("ann", 1)
    encode(error_feedback, codec, gradient(1), 0, 8)
    error_feedback.settle([contribution(first=0, end=8)])
    encode(error_feedback, codec, gradient(1), 8, 16)
    error_feedback.forget()
    error_feedback.settle([contribution(first=8, end=16)])
    assert encode(error_feedback, codec, gradient(2), 16, 24) == codec.encode(gradient(2).numpy())


@pytest.mark.parametrize("name", ["fp64", "fp32", "fp16", "bf16"])
def test_codecs_without_feedback_keep_nothing(name: str) -> None:
    codec, error_feedback = CODECS[name], ErrorFeedback("ann", 1)
    for epoch in range(3):
        assert encode(error_feedback, codec, gradient(epoch), epoch, epoch + 1) == codec.encode(gradient(epoch).numpy())
        error_feedback.settle([contribution(first=epoch, end=epoch + 1)])


def test_after_a_change_to_a_codec_without_feedback_the_rest_goes_out_once() -> None:
    error_feedback = ErrorFeedback("ann", 1)
    given_away = values_of("int4", encode(error_feedback, CODECS["int4"], gradient(1), 0, 1))
    error_feedback.settle([contribution(first=0, end=1)])
    rest = values_of("fp32", encode(error_feedback, CODECS["fp32"], torch.zeros(ELEMENTS), 1, 2))
    assert given_away + rest == pytest.approx(gradient(1).numpy().astype(np.float64), abs=2.0**-9)
    error_feedback.settle([contribution(first=1, end=2)])
    assert not values_of("fp32", encode(error_feedback, CODECS["fp32"], torch.zeros(ELEMENTS), 2, 3)).any()


def test_a_residual_out_of_all_bounds_is_given_up() -> None:
    """A block of a value beyond what the codec can say saturates: the rest of it is nothing to send later."""
    error_feedback, codec = ErrorFeedback("ann", 1), CODECS["int8"]
    huge = gradient(1)
    huge[0] = 3e38
    encode(error_feedback, codec, huge, 0, 8)
    error_feedback.settle([contribution(first=0, end=8)])
    assert encode(error_feedback, codec, gradient(2), 8, 16) == codec.encode(gradient(2).numpy())


def test_what_is_not_finite_is_not_given_and_leaves_nothing_behind() -> None:
    error_feedback, codec = ErrorFeedback("ann", 1), CODECS["int8"]
    broken = gradient(1)
    broken[-1] = math.nan
    assert error_feedback.encode(codec, Given(broken, 0, 8)) is None
    error_feedback.settle([contribution(first=0, end=8)])
    assert encode(error_feedback, codec, gradient(2), 8, 16) == codec.encode(gradient(2).numpy())
