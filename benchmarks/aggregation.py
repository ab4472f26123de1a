"""What each aggregation rule makes of contributors that mean harm: python -m benchmarks.aggregation [--json]

Eight contributors train a small language model on the test corpus, in one process, with the rules of production. Some of them
send something else than their gradient. The norms are those of what they send: a reducer refuses a vector that is longer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import tables
from benchmarks.stage import parser_of
from protocols.gradients.aggregation import RULES
from protocols.round.weights import capped_weights
from protocols.run_spec import AveragingSpec
from tests.factories import CORPUS

CONTRIBUTORS, SAMPLES, LENGTH, STEPS, RATE, CLIP = 8, 4, 64, 150, 0.5, 1.0
SEEDS = (1, 2, 3)
MAX_SHARE = AveragingSpec().max_share
Vectors = list[np.ndarray]
"""One a contributor, (n,) float32. The hostile ones come last."""


def opposite(vectors: Vectors, draw: np.random.Generator) -> None:
    vectors[-1] = -10 * vectors[-1]


def noise(vectors: Vectors, draw: np.random.Generator) -> None:
    length = float(np.linalg.norm(vectors[-1]))
    random = draw.standard_normal(len(vectors[-1])).astype(np.float32)
    vectors[-1] = random * (10 * length / float(np.linalg.norm(random)))


def flipped(vectors: Vectors, draw: np.random.Generator) -> None:
    vectors[-2:] = [-vector for vector in vectors[-2:]]


def little(vectors: Vectors, draw: np.random.Generator) -> None:
    """A little is enough (Baruch et al., 2019): the honest mean, off by one standard deviation in each element."""
    honest = np.stack(vectors[:-2])
    vectors[-2:] = [honest.mean(0) - honest.std(0)] * 2


ATTACKS: dict[str, Callable[[Vectors, np.random.Generator], None]] = {
    "honest": lambda vectors, draw: None,
    "1 of 8: gradient x(-10)": opposite,
    "1 of 8: noise, 10 times as long": noise,
    "2 of 8: sign flipped": flipped,
    "2 of 8: a little is enough": little,
    "1 of 8: x(-10), names 10^9 samples": opposite,
}
CLAIMS = {"1 of 8: x(-10), names 10^9 samples": 10**9}
"""How many samples the last contributor names."""


def tokens() -> torch.Tensor:
    text = "\n".join(path.read_text() for path in sorted(CORPUS.glob("*.txt")))
    return torch.tensor(list(text.encode()), dtype=torch.long)


def trained(rule: str, attack: str, seed: int, data: torch.Tensor) -> float:
    """Held-out loss in nats a byte after STEPS steps."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    config = GPT2Config(
        vocab_size=256,
        n_embd=48,
        n_layer=2,
        n_head=2,
        n_positions=LENGTH,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)
    train, held_out = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]

    def batch(text: torch.Tensor, samples: int) -> torch.Tensor:
        starts = draw.integers(0, len(text) - LENGTH, samples)
        return torch.stack([text[start : start + LENGTH] for start in starts])

    def gradient() -> np.ndarray:
        model.zero_grad()
        inputs = batch(train, SAMPLES)
        model(input_ids=inputs, labels=inputs).loss.backward()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).numpy().copy()

    for _ in range(STEPS):
        vectors = [gradient() for _ in range(CONTRIBUTORS)]
        ATTACKS[attack](vectors, draw)
        norms = [float(np.linalg.norm(vector)) for vector in vectors]
        samples = [SAMPLES] * (CONTRIBUTORS - 1) + [CLAIMS.get(attack, SAMPLES)]
        combined = torch.from_numpy(RULES[rule](vectors, capped_weights(samples, MAX_SHARE), norms))
        at = 0
        for parameter in parameters:
            parameter.grad = combined[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
    with torch.no_grad():
        inputs = batch(held_out, 64)
        loss = float(model(input_ids=inputs, labels=inputs).loss)
    return loss if math.isfinite(loss) else math.inf


def main() -> None:
    as_json = parser_of("aggregation", __doc__, "python -m benchmarks.aggregation").parse_args().json
    data, rows, result = tokens(), [], dict[str, Any](benchmark="aggregation", losses={})
    for attack in ATTACKS:
        losses = {rule: [trained(rule, attack, seed, data) for seed in SEEDS] for rule in RULES}
        result["losses"][attack] = losses
        rows.append([attack, *(f"{statistics.mean(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in losses.values())])
        tables.say(" · ".join(rows[-1]))
    result["machine"] = tables.machine()
    tables.show(result, [tables.table("held-out loss, nats a byte", ["", *RULES], rows)], as_json=as_json)


if __name__ == "__main__":
    tables.run(main)
