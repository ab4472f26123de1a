"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from protocols.identity import Authority

# How long an example takes says nothing on a shared machine. Examples are the same every time; `make fuzz` looks for new ones.
settings.register_profile("dugnad", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=1000, suppress_health_check=list(HealthCheck))
settings.load_profile("fuzz" if "DUGNAD_FUZZ_INPUTS" in os.environ else "dugnad")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as the tests' only wait for each other's threads on a busy machine."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of one run."""
    return Authority.load_or_create(tmp_path_factory.mktemp("run"))
