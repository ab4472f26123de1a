from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from protocols.errors import BadMessageError, CorpusError, SpecError, UsageError
from protocols.run_spec import RunSpec
from protocols.tasks import registry
from protocols.tasks.assets import read_asset, write_asset
from protocols.tasks.base import Batch, to_device
from protocols.tasks.batches import Prefetched, spread
from protocols.tasks.language import packing
from protocols.tasks.language.corpus import Document
from protocols.tasks.language.settings import DataSpec, MaskedSettings
from protocols.tasks.language.task import LanguageTask
from protocols.tasks.registry import initial_model, prepare
from tests.protocols.tasks.teaching import teach

CAUSAL: dict[str, Any] = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
CAUSAL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
MASKED: dict[str, Any] = {"model_type": "albert", "embedding_size": 8, "hidden_size": 16, "intermediate_size": 32}
MASKED |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
LENGTH = 32


def words(seed: int, lines: int) -> str:
    draw = random.Random(seed)
    names = ["".join(draw.choices("abcdefghij", k=draw.randrange(2, 7))) for _ in range(40)]
    return "\n".join(" ".join(draw.choices(names, k=8)) for _ in range(lines))


def author(folder: Path, kind: str = "causal-lm", **settings: Any) -> RunSpec:
    task = {
        "kind": kind,
        "model": CAUSAL if kind == "causal-lm" else MASKED,
        "data": {"source": "files", "paths": ["*.txt"], "held_out_bytes": 4096},
        "tokenizer": {"vocab_size": 300},
        "sequence_length": LENGTH,
    }
    spec = RunSpec.model_validate({"run": {"name": "tiny", "seed": 3}, "task": {**task, **settings}})
    return RunSpec.from_toml(spec.to_toml(), folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (folder / f"{i:02d}.txt").write_text(words(i, 40))
    return folder


Opened = tuple[LanguageTask, RunSpec, Path]


def test_a_trial_reads_nothing_but_what_came_with_the_runs_files(texts: Path, tmp_path: Path) -> None:
    resolved = prepare(author(texts), tmp_path, lambda line: None)
    elsewhere = RunSpec.from_toml(resolved.to_toml(), tmp_path / "nowhere")
    task = open_task(elsewhere, tmp_path)
    task.use_trial_data()
    with task.batches(seed=1, peer="p", micro_batch=2) as batches:
        assert next(batches)["input_ids"].shape == (2, LENGTH)


def open_task(resolved: RunSpec, directory: Path, **options: Any) -> LanguageTask:
    task = registry.open_task(resolved, directory, **options)
    assert isinstance(task, LanguageTask)
    return task


@pytest.fixture(scope="module", params=["causal-lm", "masked-lm"])
def opened(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    directory = tmp_path_factory.mktemp("run")
    resolved = prepare(author(texts, request.param), directory, lambda line: None)
    return open_task(resolved, directory), resolved, directory


def take(task: LanguageTask, count: int, *, seed: int = 0, peer: str = "ann", micro_batch: int = 4) -> list[Batch]:
    with task.batches(seed=seed, peer=peer, micro_batch=micro_batch) as batches:
        return [next(batches) for _ in range(count)]


def equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What the coordinator prepares


def test_a_resolved_spec_travels_as_toml_and_opens_elsewhere(opened: Opened, tmp_path: Path) -> None:
    task, resolved, directory = opened
    received = RunSpec.from_toml(resolved.to_toml(), resolved.folder)
    assert received.digest == resolved.digest
    for name in received.assets:
        write_asset(received, tmp_path, name, read_asset(resolved, directory, name))
    assert equal(take(open_task(received, tmp_path), 1)[0], take(task, 1)[0])


def test_preparing_twice_gives_the_same_run(opened: Opened, tmp_path: Path) -> None:
    _, resolved, _ = opened
    again = prepare(author(resolved.folder, resolved.task.kind), tmp_path, lambda line: None)
    assert again.digest == resolved.digest


def test_an_asset_of_another_digest_is_refused_before_use(opened: Opened, tmp_path: Path) -> None:
    _, resolved, directory = opened
    with pytest.raises(BadMessageError, match="digest"):
        write_asset(resolved, tmp_path, "held_out.json", b"[]")
    with pytest.raises(BadMessageError, match="no asset"):
        write_asset(resolved, tmp_path, "../../escape", b"")
    assert list(tmp_path.iterdir()) == []
    for name in resolved.assets:
        write_asset(resolved, tmp_path, name, read_asset(resolved, directory, name))
    (tmp_path / "assets" / "held_out.json").write_text('[["a", "b"]]')
    with pytest.raises(BadMessageError, match="digest"):
        open_task(resolved, tmp_path)
    (tmp_path / "assets" / "held_out.json").unlink()
    with pytest.raises(BadMessageError, match="cannot be read"):
        open_task(resolved, tmp_path)


def test_an_unresolved_spec_cannot_be_opened(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not resolved"):
        open_task(author(texts), tmp_path)


@pytest.mark.parametrize(
    ("sections", "cause", "remedy"),
    [
        ({"model": {"model_type": "lama"}}, "lama", "llama"),
        ({"model": {"model_type": "vit"}}, "cannot do task causal-lm", ""),
        ({"model": {**CAUSAL, "hiden_size": 3}}, "model.hiden_size", "model.hidden_size"),
        ({"model": {**CAUSAL, "dtype": "float16"}}, "model.dtype", ""),
        ({"model": {**CAUSAL, "hidden_size": "wide"}}, "hidden_size", ""),
        ({"model": {**CAUSAL, "vocab_size": 100}}, "vocab_size", ""),
        ({"sequence_length": 100}, "64 positions", "64"),
        ({"tokenizer": {"folder": "absent"}}, "tokenizer.json", ""),
        ({"data": {"source": "files"}}, "task.data", "run file"),
        ({"data": {"source": "datasets"}}, "dataset", ""),
        ({"model": {"model_type": "gpt2", "pretrained": "absent"}}, "pretrained", ""),
        ({"model": {"pretrained": "absent", "n_embd": 8}}, "remove n_embd", ""),
        ({"mask_probability": 0.2}, "task.mask_probability", "Valid here"),
        ({"model": {"pretrained": "absent"}}, "config.json", ""),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(
    texts: Path, tmp_path: Path, sections: dict[str, Any], cause: str, remedy: str
) -> None:
    with pytest.raises(SpecError) as caught:
        prepare(author(texts, **sections), tmp_path, lambda line: None)
    assert cause in str(caught.value)
    assert remedy in caught.value.remedy
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_pretrained_folder_is_where_training_starts(texts: Path, tmp_path: Path, opened: Opened) -> None:
    task, resolved, _ = opened
    if resolved.task.kind != "causal-lm":
        pytest.skip("one architecture is enough")
    torch.manual_seed(9)
    trained = task.build_model()
    trained.to(torch.bfloat16).save_pretrained(tmp_path / "weights")  # type: ignore[operator]
    task.tokenizer.save_pretrained(tmp_path / "weights")
    spec = author(texts, model={"pretrained": str(tmp_path / "weights")})
    directory = tmp_path / "run"
    from_pretrained = prepare(spec, directory, lambda line: None)
    model_keys = from_pretrained.task.settings["model"]
    assert "pretrained" not in model_keys
    assert model_keys["hidden_size"] == 16
    model = initial_model(spec, from_pretrained, directory)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, dict(trained.named_parameters())[name].float())
    assert len(open_task(from_pretrained, directory).tokenizer) == len(task.tokenizer)


def test_the_first_model_depends_on_the_seed_alone(opened: Opened) -> None:
    _, resolved, directory = opened
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initial_model(resolved, resolved, directory)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = initial_model(resolved, resolved, directory)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in first.parameters())


def test_the_model_saves_as_any_transformers_model(opened: Opened, tmp_path: Path) -> None:
    task, resolved, directory = opened
    if resolved.task.kind != "causal-lm":
        pytest.skip("one architecture is enough")
    model = initial_model(resolved, resolved, directory)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = take(task, 1)[0]
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


# The order of the data


def test_each_peer_has_an_order_of_its_own_that_it_can_repeat(opened: Opened) -> None:
    task, _, _ = opened
    ann = take(task, 3)
    assert all(equal(a, b) for a, b in zip(ann, take(task, 3), strict=True))
    assert not equal(ann[0], take(task, 1, peer="bob")[0])
    assert not equal(ann[0], take(task, 1, seed=1)[0])
    assert not equal(ann[0], ann[1])


def test_the_micro_batch_cuts_the_same_order_elsewhere(opened: Opened) -> None:
    task, _, _ = opened
    fours, ones = take(task, 2), take(task, 8, micro_batch=1)
    assert equal(
        {name: torch.cat([batch[name] for batch in ones]) for name in ones[0]},
        {name: torch.cat([batch[name] for batch in fours]) for name in fours[0]},
    )


def test_samples_are_full_sequences_on_the_cpu(opened: Opened) -> None:
    task, _, _ = opened
    batch = take(task, 1)[0]
    assert all(tensor.shape == (4, LENGTH) and tensor.dtype == torch.long for tensor in batch.values())
    assert task.samples_in(batch) == 4
    assert equal(to_device(batch, "cpu"), batch)


def test_every_document_is_trained_on_equally_often_and_in_another_order_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "tokens_of", lambda tokenizer, text: [int(token) for token in text.split()])
    monkeypatch.setattr(packing, "_SHUFFLE_TOKENS", 64)
    documents = [Document(str(i), " ".join(str(10 * i + j) for j in range(10))) for i in range(30)]
    stream = packing.training_sequences(documents, None, 8, 999, seed=0)  # type: ignore[arg-type]
    drawn = [next(stream) for _ in range(5 * 30 * 11 // 8)]  # five passes of 30 documents of 10 tokens and a separator
    assert all(len(sequence) == 8 for sequence in drawn)
    counts = Counter(token for sequence in drawn for token in sequence if token != 999)
    assert len(counts) == 300
    assert max(counts.values()) <= 6  # at most the pool, 64 tokens, is ahead or behind
    assert sum(max(0, 5 - count) for count in counts.values()) <= 64
    assert all(b == a + 1 for s in drawn for a, b in pairwise(s) if a != 999 and a % 10 != 9)
    first_tokens = [sequence[0] for sequence in drawn]
    assert first_tokens[:40] != first_tokens[40:80]


def test_held_out_text_is_never_trained_on_even_if_a_peer_brings_it(opened: Opened, tmp_path: Path) -> None:
    task, resolved, directory = opened
    held_out = json.loads((directory / "assets" / "held_out.json").read_text())
    (tmp_path / "brought.txt").write_text("\n".join(text for _, text in held_out))
    (tmp_path / "fine.txt").write_text(words(1001, 100))
    own = open_task(resolved, directory, data_paths=[str(tmp_path / "*.txt")])
    assert [document.name for document in own.documents] == [str(tmp_path / "fine.txt").lstrip("/")]
    (tmp_path / "fine.txt").unlink()
    with pytest.raises(CorpusError, match="held-out"):
        open_task(resolved, directory, data_paths=[str(tmp_path / "*.txt")]).batches(seed=0, peer="a", micro_batch=1)
    held_out_lines = {line for _, text in held_out for line in text.split("\n")}
    trained_lines = {line for document in task.documents for line in document.text.split("\n")}
    assert not held_out_lines & trained_lines


def test_a_missing_corpus_is_the_callers_error_and_evaluation_needs_none(opened: Opened, tmp_path: Path) -> None:
    _, resolved, directory = opened
    task = open_task(resolved, directory, data_paths=[str(tmp_path / "absent.txt")])
    assert task.evaluate(initial_model(resolved, resolved, directory), 2) > 0
    with pytest.raises(CorpusError, match="nothing matches"):
        task.batches(seed=0, peer="a", micro_batch=1)
    with pytest.raises(ValueError, match="micro_batch"):
        task.batches(seed=0, peer="a", micro_batch=0)


def alive() -> int:
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def test_closing_ends_the_preparing_thread_whatever_it_was_doing(opened: Opened) -> None:
    task, _, _ = opened
    for drawn in (0, 1, 7):
        batches = task.batches(seed=0, peer="a", micro_batch=2)
        for _ in range(drawn):
            next(batches)
        batches.close()
        batches.close()
        assert next(batches, None) is None
    assert alive() == 0


def test_a_fault_while_preparing_reaches_the_loop() -> None:
    def make() -> Iterator[Batch]:
        yield {"input_ids": torch.zeros(1)}
        raise OSError("the disk went away")

    batches = Prefetched(make)
    next(batches)
    with pytest.raises(OSError, match="disk"):
        next(batches)
    assert alive() == 0


# Loss and evaluation


def test_the_loss_is_a_sum_over_samples_so_that_gradients_of_micro_batches_add_up(opened: Opened) -> None:
    task, resolved, directory = opened
    model = initial_model(resolved, resolved, directory).double()
    batch = take(task, 1, micro_batch=6)[0]
    whole = torch.autograd.grad(task.loss(model, batch), list(model.parameters()), allow_unused=True)
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 1), slice(1, 3), slice(3, 6))]
    model.zero_grad()
    for part in parts:
        task.loss(model, part).backward()  # type: ignore[no-untyped-call]
    for gradient, parameter in zip(whole, model.parameters(), strict=True):
        if gradient is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_the_loss_of_a_sample_is_its_mean_token_loss(opened: Opened) -> None:
    task, resolved, directory = opened
    model = initial_model(resolved, resolved, directory)
    batch = take(task, 1)[0]
    targets = batch.get("labels", batch["input_ids"]).clone()
    logits = model(input_ids=batch["input_ids"]).logits.detach()
    if "labels" not in batch:
        logits, targets = logits[:, :-1], targets[:, 1:]
    expected = sum(float(nn.functional.cross_entropy(logits[i][targets[i] >= 0], targets[i][targets[i] >= 0])) for i in range(4))
    assert task.loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


class Known(nn.Module):
    """A model that predicts fixed token probabilities whatever it is shown."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor, **_: object) -> Any:
        return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, -1)})


def test_evaluation_and_the_unigram_loss_measure_the_same_tokens(opened: Opened) -> None:
    task, _, _ = opened
    counts = torch.ones(len(task.tokenizer), dtype=torch.float64)
    separator = task.tokenizer.eos_token_id if task.tokenizer.eos_token_id is not None else task.tokenizer.sep_token_id
    for document in task.documents:
        for token in [*task.tokenizer(document.text, add_special_tokens=False)["input_ids"], separator]:
            counts[token] += 1
    unigram = Known((counts / counts.sum()).log())
    for samples in (None, 5):
        assert task.evaluate(unigram, samples) == pytest.approx(task.unigram_loss(samples), rel=1e-9)


def test_evaluation_repeats_and_leaves_the_model_as_it_was(opened: Opened) -> None:
    task, resolved, directory = opened
    model = initial_model(resolved, resolved, directory)
    for training in (True, False):
        model.train(training)
        assert task.evaluate(model, 4) == task.evaluate(model, 4)
        assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_few_steps_teach_something(opened: Opened) -> None:
    task, resolved, directory = opened
    model = initial_model(resolved, resolved, directory)
    before = task.evaluate(model, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    teach(task, model, optimizer, micro_batch=8, steps=30)
    assert task.evaluate(model, 16) < before - 0.3


@pytest.mark.parametrize(
    ("count", "wanted", "expected"), [(10, None, list(range(10))), (4, 9, [0, 1, 2, 3]), (10, 5, [0, 2, 4, 6, 8])]
)
def test_a_limited_evaluation_is_spread_over_all_of_the_text(count: int, wanted: int | None, expected: list[int]) -> None:
    assert spread(count, wanted) == expected


def test_text_is_generated_reproducibly(opened: Opened) -> None:
    task, resolved, directory = opened
    model = initial_model(resolved, resolved, directory)
    prompt = "abc de" if resolved.task.kind == "causal-lm" else "abc [MASK] de"
    greedy = task.generate(model, prompt, 100)
    assert greedy == task.generate(model, prompt, 100)
    assert greedy.startswith("abc")
    drawn = {task.generate(model, prompt, 5, top_k=50, seed=seed) for seed in range(5)}
    assert len(drawn) > 1
    assert task.generate(model, prompt, 5, top_k=50, seed=1) in drawn


# Masking


@pytest.fixture
def masked(opened: Opened) -> Opened:
    if opened[1].task.kind != "masked-lm":
        pytest.skip("masks tokens")
    return opened


def test_masks_hide_the_share_asked_for_and_never_special_tokens(masked: Opened) -> None:
    task = masked[0]
    batch = take(task, 1, micro_batch=256)[0]
    tokens, labels = batch["input_ids"], batch["labels"]
    predicted = labels >= 0
    assert bool(predicted.any(dim=1).all())
    assert float(predicted.float().mean()) == pytest.approx(0.15 * 30 / 32, abs=0.02)
    assert not bool(torch.isin(labels, torch.tensor(task.tokenizer.all_special_ids)).any())
    hidden = tokens[predicted] == task.tokenizer.mask_token_id
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.05)
    kept = tokens[predicted] == labels[predicted]
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.04)
    assert bool((tokens[:, 0] == task.tokenizer.cls_token_id).all())
    assert bool((tokens[:, -1] == task.tokenizer.sep_token_id).all())


def test_every_sample_predicts_something_even_at_the_lowest_probability(masked: Opened) -> None:
    task, resolved, directory = masked
    settings = resolved.task.read(MaskedSettings).model_copy(update={"mask_probability": 1e-9})
    rare = resolved.model_copy(update={"task": resolved.task.with_settings(settings)})
    batch = take(open_task(rare, directory), 1, micro_batch=16)[0]
    assert (batch["labels"] >= 0).sum(dim=1).tolist() == [1] * 16
    assert bool(torch.isfinite(task.loss(initial_model(resolved, resolved, directory), batch)))


def test_filling_in_leaves_the_rest_of_the_prompt(masked: Opened) -> None:
    task, resolved, directory = masked
    model = initial_model(resolved, resolved, directory)
    filled = task.generate(model, "abc [MASK] de [MASK] fgh", 10)
    assert "[MASK]" not in filled
    assert filled.startswith("abc ")
    assert " de " in filled
    assert filled.endswith(" fgh")
    assert len(task.generate(model, "abc", 1)) > 3


def test_a_prompt_longer_than_the_model_is_no_error(opened: Opened) -> None:
    task, resolved, directory = opened
    assert task.generate(initial_model(resolved, resolved, directory), words(0, 50), 2)


# -- on a volunteer's machine ----------------------------------------------------------------------------------------------------


def served(opened: Opened, **data: Any) -> tuple[RunSpec, Path]:
    """The run's spec as a coordinator could serve it, with this for [task.data]."""
    task, resolved, directory = opened
    settings = task.settings.model_copy(update={"data": DataSpec(**data)})
    spec = resolved.model_copy(update={"task": resolved.task.with_settings(settings)})
    return RunSpec.from_toml(spec.to_toml()), directory


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"source": "files", "paths": ["/home/*/letters/*.txt"]}, id="files"),
        pytest.param({"source": "datasets", "dataset": "/home/ola/letters"}, id="a folder"),
        pytest.param({"source": "datasets", "dataset": "../letters"}, id="a folder beside this one"),
        pytest.param({"source": "datasets", "dataset": "tests"}, id="a folder that has the name of a data set"),
    ],
)
def test_no_served_spec_names_what_is_on_a_volunteers_disk(opened: Opened, data: dict[str, Any]) -> None:
    spec, directory = served(opened, **data)
    with pytest.raises(UsageError, match="run") as refused:
        open_task(spec, directory, data_paths=())
    assert "--data" in refused.value.remedy
    assert open_task(spec, directory, data_paths=["mine.txt"]).data_source == "your files: mine.txt"


@pytest.mark.parametrize(
    ("data", "source"),
    [
        ({"source": "python-stdlib"}, "Python's standard library"),
        ({"source": "datasets", "dataset": "Salesforce/wikitext"}, "data set Salesforce/wikitext of the Hugging Face hub"),
    ],
)
def test_a_volunteer_is_told_what_will_be_read_or_fetched(opened: Opened, data: dict[str, Any], source: str) -> None:
    spec, directory = served(opened, **data)
    assert source in open_task(spec, directory, data_paths=()).data_source
