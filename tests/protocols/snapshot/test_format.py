from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from protocols.errors import BadMessageError
from protocols.optimization import build_optimizer
from protocols.run_spec import RunSpec
from protocols.snapshot.format import StateHeader, capture, manifest_of, read_header, read_parameters, restore

HEADER = StateHeader(run_digest="aa", epoch=7, lineage="bb", samples=900, commit="cc", scheduler={"epoch": 7})


class Net(nn.Module):
    """Tied weights and a buffer, as transformers' models have them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.norm(self.embedding(tokens)))
        return output


def make(name: str = "adamw", width: int = 4, **options: Any) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(width)
    spec = RunSpec.model_validate({"run": {"name": "x"}, "optimizer": {"name": name, **options}})
    return net, build_optimizer(spec, net)


def step(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(10, (8,), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(tokens), tokens).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@cache
def a_snapshot() -> bytes:
    return capture(*trained(), HEADER)


def trained(name: str = "adamw", **options: Any) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net, optimizer = make(name, **options)
    for seed in range(3):
        step(net, optimizer, seed)
    return net, optimizer


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_who_restores_a_snapshot_steps_bit_identically(name: str) -> None:
    options = {"momentum": 0.9} if name == "sgd" else {}
    net, optimizer = trained(name, **options)
    snapshot = capture(net, optimizer, HEADER)
    torch.manual_seed(1)
    late, late_optimizer = make(name, **options)
    assert restore(snapshot, late, late_optimizer) == HEADER
    assert capture(late, late_optimizer, HEADER) == snapshot
    for seed in range(3, 6):
        step(net, optimizer, seed)
        step(late, late_optimizer, seed)
    assert capture(late, late_optimizer, HEADER) == capture(net, optimizer, HEADER)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_a_snapshot_taken_before_the_first_step_can_be_restored(name: str) -> None:
    net, optimizer = make(name)
    late, late_optimizer = trained(name)
    restore(capture(net, optimizer, HEADER), late, late_optimizer)
    step(net, optimizer, 1)
    step(late, late_optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), late.parameters(), strict=True))


def test_a_snapshot_is_later_unmoved_by_training() -> None:
    net, optimizer = trained()
    snapshot = capture(net, optimizer, HEADER)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    late, late_optimizer = make()
    restore(snapshot, late, late_optimizer)
    step(late, late_optimizer, 9)
    late, late_optimizer = make()
    restore(snapshot, late, late_optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in late.state_dict().items())


def test_tied_parameters_travel_once_and_stay_tied() -> None:
    net, optimizer = trained()
    parameters = read_parameters(capture(net, optimizer, HEADER))
    assert "embedding.weight" in parameters
    assert "head.weight" not in parameters
    late, late_optimizer = make()
    restore(capture(net, optimizer, HEADER), late, late_optimizer)
    assert late.head.weight is late.embedding.weight
    assert torch.equal(late.head.weight, net.head.weight)


def test_the_header_and_the_manifest_name_the_snapshot() -> None:
    snapshot = capture(*trained(), HEADER)
    assert read_header(snapshot) == HEADER
    manifest = manifest_of(snapshot, HEADER, chunk_bytes=100)
    assert (manifest.epoch, manifest.lineage, manifest.total_bytes) == (7, "bb", len(snapshot))
    assert len(manifest.chunk_sha256) == -(-len(snapshot) // 100)
    flipped = bytearray(snapshot)
    flipped[-1] ^= 1
    other = manifest_of(bytes(flipped), HEADER, chunk_bytes=100)
    assert other.digest != manifest.digest
    assert other.chunk_sha256[:-1] == manifest.chunk_sha256[:-1]


def refused_and_untouched(snapshot: bytes, match: str = ".", name: str = "adamw", width: int = 4) -> None:
    torch.manual_seed(5)
    net, optimizer = make(name, width)
    step(net, optimizer, 0)
    before = capture(net, optimizer, HEADER)
    with pytest.raises(BadMessageError, match=match):
        restore(snapshot, net, optimizer)
    assert capture(net, optimizer, HEADER) == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_snapshot_is_refused(share: float) -> None:
    snapshot = capture(*trained(), HEADER)
    refused_and_untouched(snapshot[: int(share * len(snapshot))])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_flipped_bits_never_do_worse_than_change_numbers(data: st.DataObject) -> None:
    snapshot = bytearray(a_snapshot())
    for _ in range(data.draw(st.integers(1, 4))):
        snapshot[data.draw(st.integers(0, len(snapshot) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    net, optimizer = make()
    try:
        restore(bytes(snapshot), net, optimizer)
    except BadMessageError:
        return
    assert all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values())
    step(net, optimizer, 1)


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(junk: bytes) -> None:
    net, optimizer = make()
    with pytest.raises(BadMessageError):
        restore(junk, net, optimizer)


def test_a_snapshot_of_another_model_or_optimizer_is_refused() -> None:
    refused_and_untouched(capture(*trained(width=6), HEADER), r"is \(.*6.*\) .* not \(.*4")
    refused_and_untouched(capture(*trained("lamb"), HEADER), "another optimizer")
    refused_and_untouched(capture(*trained("sgd", momentum=0.9), HEADER), "another optimizer")
    refused_and_untouched(capture(*trained(betas=(0.5, 0.6)), HEADER), "betas differs")
    plain = nn.Linear(3, 3)
    refused_and_untouched(capture(plain, torch.optim.SGD(plain.parameters(), lr=0.1), HEADER), "another model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["parameters.embedding.weight", "parameters.norm.running_var", "optimizer.norm.bias.exp_avg"])
def test_a_value_that_is_not_finite_is_refused(key: str, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> None:
        tensors[key].view(-1)[-1] = value

    refused_and_untouched(forged(poison), "not finite")


def forged(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> bytes:
    """A snapshot as a hostile donor could write it: well-formed but for `change`."""
    snapshot = capture(*trained(), HEADER)
    size = int.from_bytes(snapshot[:8], "little")
    document = json.loads(json.loads(snapshot[8 : 8 + size])["__metadata__"]["dugnad"])
    tensors = {name: tensor.clone() for name, tensor in load(snapshot).items()}
    change(tensors, document)
    return save(tensors, metadata={"dugnad": json.dumps(document)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, document: document["optimizer_groups"][0].update(lr=float("nan")),
        lambda tensors, document: document["optimizer_groups"][0].update(lr=-1.0),
        lambda tensors, document: document["optimizer_groups"][0].update(weight_decay=1e9),
        lambda tensors, document: document["optimizer_groups"][0].update(foreach=True),
        lambda tensors, document: document["optimizer_groups"][0].update(params=[]),
        lambda tensors, document: document["optimizer_groups"][0].pop("eps"),
        lambda tensors, document: document["optimizer_groups"].pop(),
        lambda tensors, document: document.pop("optimizer_groups"),
        lambda tensors, document: document.update(optimizer_groups=3),
        lambda tensors, document: document.update(optimizer_scalars=[1]),
        lambda tensors, document: document["optimizer_scalars"].update({"norm.bias": {"step": "many"}}),
        lambda tensors, document: document["optimizer_scalars"].update({"nobody": {"step": 1}}),
        lambda tensors, document: document["header"].update(epoch="7"),
        lambda tensors, document: document["header"].update(epoch=-1),
        lambda tensors, document: document["header"].update(extra=1),
        lambda tensors, document: document["header"].pop("lineage"),
        lambda tensors, document: document["header"].update(scheduler=[]),
        lambda tensors, document: tensors.pop("optimizer.norm.bias.exp_avg_sq"),
        lambda tensors, document: [tensors.pop(name) for name in list(tensors) if name.startswith("optimizer.norm.bias")],
        lambda tensors, document: tensors.update({"optimizer.norm.bias.exp_avg": torch.zeros(5)}),
        lambda tensors, document: tensors.update({"optimizer.norm.bias.exp_avg": torch.zeros(4, dtype=torch.float64)}),
        lambda tensors, document: tensors.update({"parameters.norm.bias": torch.zeros(4, dtype=torch.float16)}),
        lambda tensors, document: tensors.pop("parameters.norm.bias"),
        lambda tensors, document: tensors.update({"parameters.more": torch.zeros(1)}),
        lambda tensors, document: tensors.update({"stowaway": torch.zeros(1)}),
    ],
)
def test_a_forged_snapshot_is_refused_and_changes_nothing(change: Callable[..., object]) -> None:
    refused_and_untouched(forged(change))


def test_forging_nothing_is_accepted() -> None:
    net, optimizer = make()
    assert restore(forged(lambda tensors, document: None), net, optimizer) == HEADER


def test_a_header_nested_beyond_reason_is_refused() -> None:
    snapshot = capture(*trained(), replace(HEADER, commit="MARK"))
    size = int.from_bytes(snapshot[:8], "little")
    nested = json.dumps({"__metadata__": {"dugnad": "[" * 100_000}}).encode()
    with pytest.raises(BadMessageError):
        read_header(len(nested).to_bytes(8, "little") + nested + snapshot[8 + size :])


def test_capturing_changes_nothing() -> None:
    net, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    capture(net, optimizer, HEADER)
    assert str(before) == str(optimizer.state_dict())
