"""Run by torchrun: prints what a local group's passes give (rank 0), and what one process gives with all their samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from peer import ranks
from peer.training import local_group
from peer.training.gradient_buffer import GradientBuffer
from peer.training.gradient_pass import GradientPass
from peer.training.tuning import Way
from tests.factories import CORPUS
from tests.replicas import language_job

PASSES, MICRO_BATCH = 3, 4
CPU = torch.device("cpu")


def main(folder: Path) -> None:
    spec, task = language_job(folder, seed=5, width=16, learning_rate=0.01, warmup_steps=1)
    torch.manual_seed(1)
    model = task.build_model()
    gradient = GradientBuffer(list(model.parameters()))

    samples, loss_sum, over = 0, 0.0, GradientPass(task, model, CPU)
    for peer in ("ann", *(f"ann:{rank}" for rank in range(1, ranks.size()))):
        with task.batches(seed=spec.run.seed, peer=peer, micro_batch=MICRO_BATCH) as batches:
            for _ in range(PASSES):
                counted, loss = over(next(batches))
                samples, loss_sum = samples + counted, loss_sum + loss
    expected = gradient.flat.clone()

    gradient.flat.zero_()
    setup = local_group.Setup(spec, folder, (f"{CORPUS}/*.txt",), "cpu", "ann", Way(micro_batch=MICRO_BATCH, threads=1))
    with (
        local_group.LocalGroup(task, model, CPU, setup) as group,
        task.batches(seed=spec.run.seed, peer="ann", micro_batch=MICRO_BATCH) as batches,
    ):
        group.begin()
        passed = [group(next(batches)) for _ in range(PASSES)]
        group.gather()
        off = float((gradient.flat - expected).norm() / expected.norm())
        gradient.flat.zero_()
        group.gather()  # nothing was drawn since
        rest = float(gradient.flat.abs().max())
    with local_group.LocalGroup(task, model, CPU, setup) as again:  # as after a pause
        again.begin()
        again.gather()
    local_group.dismiss()
    found = [sum(counted for counted, _ in passed), sum(loss for _, loss in passed)]
    print(json.dumps({"expected": [samples, loss_sum], "found": found, "off": off, "rest": rest}), flush=True)


if __name__ == "__main__":
    number = ranks.rank()
    if number:
        local_group.run_rank(number)
    else:
        main(Path(sys.argv[1]))
