from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import SpecError
from protocols.gradients.aggregation import RULES, norm_capped_mean, rule_named, weighted_mean
from protocols.gradients.codecs import CODECS
from protocols.round.weights import capped_weights
from protocols.run_spec import RuleName

EVERY_RULE = pytest.mark.parametrize("name", RULES)
WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)
SEED = st.integers(0, 2**32 - 1)
ELEMENTS = 97


def parts_of(seed: int, count: int, scale: float = 1.0) -> np.ndarray:
    """(count, ELEMENTS)"""
    return np.random.default_rng(seed).uniform(-scale, scale, (count, ELEMENTS)).astype(np.float32)


def test_the_spec_accepts_exactly_the_rules_that_there_are() -> None:
    assert set(get_args(RuleName)) == set(RULES)


def test_an_unknown_rule_is_refused_with_the_nearest_valid_name() -> None:
    with pytest.raises(SpecError, match=r"averaging\.rule is 'meen'") as caught:
        rule_named("meen")
    assert 'Did you mean "mean"?' in caught.value.remedy


@EVERY_RULE
@given(weights=WEIGHTS, seed=SEED, cut=st.integers(1, ELEMENTS - 1))
def test_a_rule_gives_the_same_bits_wherever_the_vector_is_cut(name: str, weights: list[int], seed: int, cut: int) -> None:
    parts = parts_of(seed, len(weights))
    norms = [float(np.linalg.norm(part)) for part in parts]
    whole = RULES[name]([part.copy() for part in parts], weights, norms)
    pieces = [RULES[name]([part[at:end].copy() for part in parts], weights, norms) for at, end in ((0, cut), (cut, ELEMENTS))]
    assert whole.dtype == np.float32
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@EVERY_RULE
@given(weights=WEIGHTS, seed=SEED)
def test_finite_parts_give_a_finite_result_even_at_the_end_of_the_floats(name: str, weights: list[int], seed: int) -> None:
    for scale in (1e-38, 1.0, 3.4e38):
        parts = list(parts_of(seed, len(weights), scale))
        norms = [float(np.linalg.norm(part.astype(np.float64))) for part in parts]
        assert bool(np.isfinite(RULES[name](parts, weights, norms)).all())


@given(
    weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_a_weighted_mean_is_exact_to_rounding_and_never_leaves_the_range_of_its_parts(
    weights: list[int], seed: int, scale: float
) -> None:
    vectors = np.random.default_rng(seed).uniform(-scale, scale, (len(weights), 9))
    for name, unit in (("fp64", 2.0**-53), ("fp32", 2.0**-24)):
        codec = CODECS[name]
        parts = [codec.encode(vector.astype(codec.working)) for vector in vectors]
        exact = np.average([codec.decode(part, 9).astype(np.float64) for part in parts], axis=0, weights=weights)
        mean = weighted_mean([codec.decode(part, 9) for part in parts], weights, []).astype(np.float64)
        assert np.abs(mean - exact).max() <= (len(weights) + 3) * unit * scale


def test_averaging_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        weighted_mean([], [], [])


def test_one_contributor_alone_gets_back_what_it_gave() -> None:
    for name, codec in CODECS.items():
        part = codec.encode(np.linspace(-3, 3, 50).astype(codec.working))
        assert codec.encode(weighted_mean([codec.decode(part, 50)], [13], [])) == part, name


def capped(norms: list[float], weights: list[int] | None = None) -> list[float]:
    """By what the norm-capped mean multiplies each of these contributions, weight aside."""
    weights = weights or [8] * len(norms)
    each = [np.eye(len(norms), dtype=np.float64)[index] for index in range(len(norms))]
    total = norm_capped_mean([row.copy() for row in each], weights, norms)
    return [float(value * sum(weights) / weight) for value, weight in zip(total, weights, strict=True)]


def test_a_contribution_counts_as_no_longer_than_twice_the_median_of_all_samples() -> None:
    assert capped([1.0, 1.1, 0.9, 1.0]) == pytest.approx([1, 1, 1, 1])
    assert capped([1.0, 1.1, 0.9, 10.0]) == pytest.approx([1, 1, 1, 0.2])
    assert capped([0.0, 0.0, 5.0]) == pytest.approx([1, 1, 0])
    assert capped([3.0]) == [1.0]
    assert capped([1.0, 50.0], [90, 10]) == pytest.approx([1, 2 * 3 / 50]), "few samples: noisier by the root of the ratio"


@given(samples=st.lists(st.integers(1, 2**32), min_size=1, max_size=40), share=st.floats(0.01, 1.0))
def test_nobody_weighs_more_than_the_largest_share_and_who_weighs_less_keeps_its_samples(
    samples: list[int], share: float
) -> None:
    weights, most = capped_weights(samples, share), max(share, 2 / len(samples))
    assert max(weights) <= most * sum(weights) * (1 + 1e-9)
    limit = max(weights)
    assert all(weight == count or (weight == limit and count > limit) for weight, count in zip(weights, samples, strict=True))
    assert weights is samples or limit == pytest.approx(most * sum(weights)), "no lower than it must be"


def test_a_claim_of_any_number_of_samples_is_worth_a_quarter_and_two_contributors_are_not_capped() -> None:
    assert capped_weights([8, 8, 8, 8, 8, 8, 8, 10**9], 0.25) == pytest.approx([8] * 7 + [56 / 3])
    assert capped_weights([1, 1, 10], 1 / 3) == pytest.approx([1, 1, 4]), "of three, two thirds"
    assert capped_weights([1, 10**9], 1 / 3) == [1, 10**9]
    assert capped_weights([8, 8, 8, 8, 100, 200], 1.0) == [8, 8, 8, 8, 100, 200]


def test_while_nobody_is_longer_the_norm_capped_mean_is_the_mean_bit_by_bit() -> None:
    parts, weights = parts_of(3, 5), [1, 2, 3, 4, 5]
    norms = [float(np.linalg.norm(part)) for part in parts]
    assert (
        norm_capped_mean([part.copy() for part in parts], weights, norms).tobytes()
        == weighted_mean([part.copy() for part in parts], weights, norms).tobytes()
    )
