from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peer.virtual import Net


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as made:
        yield made
