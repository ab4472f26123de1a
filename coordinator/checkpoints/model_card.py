"""The model card of a checkpoint: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import torch
from huggingface_hub import ModelCard, ModelCardData

from coordinator.checkpoints.facts import CheckpointFacts
from protocols.tasks.base import Task

_PROSE = """\
# {name}

A `{card.architecture}` model of {parameters:,} parameters, trained from its run spec by volunteers who pooled their computers \
with dugnad, an implementation of [DeDLOC](https://arxiv.org/abs/2106.10207). It was written while the run went on: it is a \
checkpoint, not a release. Nobody has reviewed what it learnt or what it says.

| | |
|---|---|
| run | {name_in_cell} (`{facts.run_digest:.16}`) |
| epoch | {facts.epoch:,} |
| samples | {facts.samples:,} |
| held-out loss | {loss} |
| peers in the last commit | {peers} |
| lineage | `{facts.lineage}` |

## Load it

```python
{card.loading}
```

`run.toml` names the data, the optimizer and all else that fixes the run. `training_state.safetensors` also holds the
optimizer's state, so that the run can go on from here; loading the model does not need it.
"""


def model_card(model: torch.nn.Module, task: Task, facts: CheckpointFacts) -> ModelCard:
    """The card of `model`, which holds the parameters of the state that `facts` describe."""
    card = task.card(model)
    front = ModelCardData(
        library_name=card.library_name,
        pipeline_tag=card.pipeline_tag,
        tags=["dugnad", "collaborative-training", card.architecture],
    )
    name = " ".join(facts.run.split())
    loss = facts.finite_loss
    prose = _PROSE.format(
        card=card,
        facts=facts,
        name=name,
        name_in_cell=name.replace("|", " "),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=task.loss_text(loss) if loss is not None else "not measured at this epoch",
        peers=len(facts.peers),
    )
    return ModelCard(f"---\n{front}\n---\n\n{prose}")
