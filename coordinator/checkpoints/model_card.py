"""The model card of a checkpoint: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import math

import torch
from huggingface_hub import ModelCard, ModelCardData

from coordinator.checkpoints.facts import CheckpointFacts

_AUTO_CLASSES = {"text-generation": "AutoModelForCausalLM", "fill-mask": "AutoModelForMaskedLM"}

_PROSE = """\
# {name}

A `{model_type}` model of {parameters:,} parameters, trained from its run spec by volunteers who pooled their computers with \
dugnad, an implementation of [DeDLOC](https://arxiv.org/abs/2106.10207). It was written while the run went on: it is a \
checkpoint, not a release. Nobody has reviewed what it learnt or what it says.

| | |
|---|---|
| run | {name_in_cell} (`{run_digest:.16}`) |
| epoch | {epoch:,} |
| samples | {samples:,} |
| held-out loss | {loss} |
| peers in the last commit | {peers} |
| lineage | `{lineage}` |

## Load it

```python
from transformers import AutoTokenizer, {auto_class}

model = {auto_class}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

`run.toml` names the data, the optimizer and all else that fixes the run. `training_state.safetensors` also holds the
optimizer's state, so that the run can go on from here; loading the model does not need it.
"""


def model_card(run_name: str, model: torch.nn.Module, facts: CheckpointFacts) -> ModelCard:
    """The card of `model`, a transformers model that holds the parameters of the state that `facts` describe."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", "transformer"))
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        tags=["dugnad", "collaborative-training", model_type],
    )
    name = " ".join(run_name.split())
    prose = _PROSE.format(
        name=name,
        name_in_cell=name.replace("|", " "),
        model_type=model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        run_digest=facts.run_digest,
        epoch=facts.epoch,
        samples=facts.samples,
        loss=_loss(facts),
        peers=len(facts.peers),
        lineage=facts.lineage,
        auto_class=_AUTO_CLASSES.get(facts.pipeline_tag, "AutoModel"),
    )
    return ModelCard(f"---\n{front}\n---\n\n{prose}")


def _loss(facts: CheckpointFacts) -> str:
    loss = facts.finite_loss
    if loss is None:
        return "not measured at this epoch"
    # exp() of a large loss says nothing, and of a very large one overflows.
    perplexity = f" (perplexity {math.exp(loss):,.1f})" if facts.pipeline_tag == "text-generation" and loss < 100 else ""
    return f"{loss:.4f} nats per token{perplexity}"
