"""Which way of training the trials choose, and when an earlier choice is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from peer.training import tuning
from peer.training.tuning import ALL_TRIALS_S, CPU_MICRO_BATCH, LARGEST_MICRO_BATCH, WORTH, Choices, Memory, Way, find_way
from protocols.errors import LocalError, UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BATCH = 1024


class Machine:
    """One that is so fast in each way, and notes which ways were tried."""

    def __init__(self, speed: Callable[[Way], float], *, largest: int = LARGEST_MICRO_BATCH, trial_s: float = 0.5) -> None:
        self._speed, self._largest, self._trial_s = speed, largest, trial_s
        self.tried: list[Way] = []
        self.now = 0.0

    def rate(self, way: Way) -> float:
        self.tried.append(way)
        self.now += self._trial_s
        if way.micro_batch > self._largest:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return self._speed(way)

    def find(self, device: torch.device, choices: Choices | None = None, batch: int = BATCH) -> Way:
        return find_way(device, choices or Choices(), batch, self.rate, lambda: self.now)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two threads each, and a GPU without bf16."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(tuning, "_has_bf16", lambda device: False)
    monkeypatch.setattr(tuning, "describe", lambda device: f"a small {device.type}")


def faster(**factors: float) -> Callable[[Way], float]:
    """100 samples/s, times the factor of each property that the way has: `bf16`, `fp16`, `compiled`, `threads_4` and so on."""

    def speed(way: Way) -> float:
        rate = 100.0 * factors.get(way.precision, 1.0) * factors.get(f"threads_{way.threads}", 1.0)
        return rate * (factors.get("compiled", 1.0) if way.compiled else 1.0)

    return speed


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        pytest.param({}, Way(micro_batch=CPU_MICRO_BATCH, precision="fp32", threads=8), id="nothing is faster"),
        pytest.param({"threads_4": 1.01}, Way(micro_batch=CPU_MICRO_BATCH, precision="fp32", threads=4), id="fewer threads"),
        pytest.param({"bf16": WORTH + 0.01}, Way(micro_batch=CPU_MICRO_BATCH, precision="bf16", threads=8), id="16 bits"),
        pytest.param({"bf16": WORTH - 0.01}, Way(micro_batch=CPU_MICRO_BATCH, precision="fp32", threads=8), id="hardly faster"),
        pytest.param({"compiled": 9.0}, Way(micro_batch=CPU_MICRO_BATCH, precision="fp32", threads=8), id="not compiled"),
    ],
)
def test_a_cpu_takes_what_its_trials_show(factors: dict[str, float], expected: Way) -> None:
    assert Machine(faster(**factors)).find(CPU) == expected


@pytest.mark.parametrize("largest", [1, 16, LARGEST_MICRO_BATCH])
def test_a_gpu_takes_the_largest_micro_batch_that_fits(largest: int) -> None:
    assert Machine(faster(), largest=largest).find(CUDA).micro_batch == largest


def test_a_gpu_without_bf16_takes_fp16_and_compiles_where_both_pay() -> None:
    assert Machine(faster(fp16=1.6, compiled=1.3)).find(CUDA) == Way(
        micro_batch=LARGEST_MICRO_BATCH, precision="fp16", threads=8, compiled=True
    )
    assert not Machine(faster(compiled=1.05)).find(CUDA).compiled


def test_a_gpu_with_bf16_takes_it_and_tries_no_other_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_has_bf16", lambda device: True)
    machine = Machine(faster(fp16=9.0))
    assert machine.find(CUDA).precision == "bf16"
    assert {way.precision for way in machine.tried} == {"bf16"}


def test_what_the_volunteer_chose_is_not_tried() -> None:
    choices = Choices(micro_batch=3, precision="fp32", threads=2, compiled=False)
    machine = Machine(faster(bf16=9.0, fp16=9.0, compiled=9.0))
    for device in (CPU, CUDA):
        assert machine.find(device, choices) == Way(micro_batch=3, precision="fp32", threads=2)
    assert machine.tried == []


def test_a_way_that_fails_is_not_taken() -> None:
    def speed(way: Way) -> float:
        if way.compiled or way.precision == "fp16":
            raise RuntimeError("no compiler here")
        return 100.0

    assert Machine(speed).find(CUDA) == Way(micro_batch=LARGEST_MICRO_BATCH, precision="fp32", threads=8)


def test_slow_trials_end_soon() -> None:
    machine = Machine(faster(bf16=9.0), trial_s=ALL_TRIALS_S + 1)
    assert machine.find(CPU).precision == "fp32"
    assert len(machine.tried) == 1


def test_a_micro_batch_fits_into_the_runs_batch() -> None:
    assert Machine(faster()).find(CPU, batch=5).micro_batch == 5
    with pytest.raises(UsageError, match="larger than the run's whole batch"):
        Machine(faster()).find(CPU, Choices(micro_batch=6), batch=5)


def test_a_model_too_large_for_the_device_is_said() -> None:
    with pytest.raises(LocalError, match="not even one sample fits on a small cuda"):
        Machine(faster(), largest=0).find(CUDA)


# -- what is kept --------------------------------------------------------------------------------------------------------------

WAY = Way(micro_batch=4, precision="bf16", threads=2)


def test_a_way_is_recalled_on_the_same_machine_for_the_same_run_and_choices(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    Memory(path, CPU, "run", Choices()).keep(WAY)
    assert Memory(path, CPU, "run", Choices()).recall() == WAY
    assert Memory(path, CPU, "another run", Choices()).recall() is None
    assert Memory(path, CPU, "run", Choices(threads=1)).recall() is None
    assert Memory(path, torch.device("mps"), "run", Choices()).recall() is None


@pytest.mark.parametrize("content", ["", "{", '{"way": {"micro_batch": 4}}'])
def test_a_file_that_says_nothing_is_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tuning.json"
    assert Memory(path, CPU, "run", Choices()).recall() is None
    path.write_text(content)
    assert Memory(path, CPU, "run", Choices()).recall() is None
