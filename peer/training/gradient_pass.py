"""One forward and backward pass over a micro-batch, in the precision that the device does well."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from peer.config import Precision
from protocols.errors import LocalError
from protocols.tasks.base import Batch, Task, to_device

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Loss scaling for fp16 (Micikevicius et al., Mixed Precision Training, 2018), with the steps that torch.amp.GradScaler takes.
FIRST_SCALE = 2.0**16
GROWS_AFTER = 2000
SMALLEST_SCALE = 2.0**-8


class GradientPass:
    """Adds the gradient of a micro-batch's summed loss to the parameters' `.grad`.

    Parameters and gradients stay in fp32 whatever the precision, so that all peers add up the same kind of number.
    """

    def __init__(
        self, task: Task, model: torch.nn.Module, device: torch.device, *, precision: Precision = "fp32", compiled: bool = False
    ) -> None:
        self._task, self._device, self._precision = task, device, precision
        self.model = model
        self._called: Any = torch.compile(model) if compiled else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._scale, self._passes = FIRST_SCALE, 0

    def __call__(self, batch: Batch) -> tuple[int, float]:
        """(samples, sum of their losses) of `batch`, once the device is done with it. Raises what the model raises, and
        LocalError when fp16 cannot hold its gradients."""
        batch = to_device(batch, self._device)
        self.model.train()
        loss = self._loss(batch)
        if self._precision == "fp16":
            self._scaled_backward(batch, loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        return self._task.samples_in(batch), float(loss.detach())  # float() waits for the device

    def begin(self) -> None:
        """Call before the first pass over parameters that have changed."""

    def gather(self) -> None:
        """Call before the gradient is read."""

    def _loss(self, batch: Batch) -> torch.Tensor:
        with self._autocast():
            return self._task.loss(self._called, batch)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self._precision)
        return nullcontext() if dtype is None else torch.autocast(self._device.type, dtype=dtype)

    def _scaled_backward(self, batch: Batch, loss: torch.Tensor) -> None:
        """Small gradients would be zero in fp16, so the loss is scaled up. What overflows is passed through again, scaled less:
        no sample is lost, and nothing that overflowed reaches the gradient."""
        while True:
            scaled = torch.autograd.grad(loss * self._scale, self.parameters, materialize_grads=True)
            if all(bool(gradient.isfinite().all()) for gradient in scaled):
                break
            self._scale, self._passes = self._scale / 2, 0
            if self._scale < SMALLEST_SCALE:
                raise LocalError("gradients overflow in fp16 at every scale", remedy="Try --precision fp32.")
            loss = self._loss(batch)
        for parameter, gradient in zip(self.parameters, scaled, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(gradient, alpha=1 / self._scale)
        self._passes += 1
        if self._passes >= GROWS_AFTER:
            self._scale, self._passes = 2 * self._scale, 0
