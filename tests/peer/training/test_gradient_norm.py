"""The norm by which peers clip: exact, and the same bits however a machine's library would sum."""

from __future__ import annotations

import math

import pytest
import torch

from peer.training.gradient_norm import PIECE_ELEMENTS, gradient_norm


@pytest.mark.parametrize("elements", [1, 2, 3, 1023, PIECE_ELEMENTS, PIECE_ELEMENTS + 1, 3 * PIECE_ELEMENTS - 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_is_exact_and_leaves_the_vector_as_it_is(elements: int, dtype: torch.dtype) -> None:
    vector = torch.randn(elements, generator=torch.Generator().manual_seed(elements)).to(dtype)
    before = vector.clone()
    exact = math.sqrt(math.fsum(value * value for value in vector.tolist()))
    assert gradient_norm(vector) == pytest.approx(exact, rel=1e-14)
    assert torch.equal(vector, before)


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    vector = torch.randn(2 * PIECE_ELEMENTS + 5, generator=torch.Generator().manual_seed(1))
    threads, norms = torch.get_num_threads(), set[float]()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.add(gradient_norm(vector))
    finally:
        torch.set_num_threads(threads)
    assert norms == {gradient_norm(vector)}


def test_the_bits_are_those_of_adding_halves_one_by_one() -> None:
    vector = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    squares = [value * value for value in vector.tolist()]
    while len(squares) > 1:
        half = (len(squares) + 1) // 2
        squares = [a + b for a, b in zip(squares, squares[half:], strict=False)] + squares[len(squares) - half : half]
    assert gradient_norm(vector) == math.sqrt(squares[0])


def test_numbers_whose_squares_leave_single_precision_have_a_norm() -> None:
    assert gradient_norm(torch.tensor([3e38, 0.0])) == pytest.approx(3e38)
    assert gradient_norm(torch.tensor([1e-40] * 4)) == pytest.approx(2e-40, rel=1e-3)
