"""The seam for training algorithms: what a peer contributes to an epoch, and what a commit does to the training state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch

from peer.settings import RunSettings
from protocols.optimization import Schedule
from protocols.round.records import Commit


class Strategy(ABC):
    """One training algorithm, from `backward()` to the optimizer step of a commit. Every method runs on the training thread.

    An epoch calls, in this order:

        after_backward(samples, loss)     once for each micro-batch
        finish()                          at the freeze
        mean(at, stop)                    then, for one piece of the contribution after another
        restart()                         after the freeze
        with advancing(lineage) as average:
            ...                           the replica decodes the averaged contribution into `average`
            step(average, commit)

    Four rules hold for every strategy:

    - State is the parameters inside `at_tip`, and the slots of `optimizer`. Snapshots, their checks and drift control cover
      exactly these. A strategy that needs more state keeps it as a slot, with one value an element.
    - A contribution is a mean. Reducers weigh it by its samples, and error feedback counts what was lost by samples, too.
    - `step` depends on its arguments, the state and the settings alone, so that all peers compute the same numbers. Clip by
      the commit's norm, never by one computed here.
    - What is drawn belongs to one base: the parameters at the last restart, at the lineage `base`. With overlap, a commit
      comes while samples accumulate; they go on at their base, and `base` names it. Without overlap they are discarded.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, settings: RunSettings
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.elements = sum(parameter.numel() for parameter in self.parameters)
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = settings
        self.first = self.end = 0
        """Samples [first, end) are accumulated. A sample's counter is its place in the order of draws."""

        self.loss_sum = 0.0
        self.base = ""
        """The lineage at whose parameters the accumulated samples were drawn; '' when that is the tip."""

    @property
    def samples(self) -> int:
        return self.end - self.first

    def after_backward(self, samples: int, loss_sum: float) -> None:
        """`samples` more went through `backward()`, with this sum of losses."""
        self.end += samples
        self.loss_sum += loss_sum

    def finish(self) -> None:  # noqa: B027  most strategies have nothing to do
        """No more samples come before the freeze: take in what is not in the contribution yet."""

    @abstractmethod
    def mean(self, at: int, stop: int) -> torch.Tensor:
        """(stop - at,) elements of the contribution of samples [first, end), on the CPU. A copy."""

    def restart(self) -> None:
        """Discard the accumulated samples and go on at the tip. Counters never go back, so that no sample counts twice."""
        self.first = self.end
        self.loss_sum = 0.0
        self.base = ""

    def resume(self, epoch: int) -> None:
        """A snapshot replaced the state, which is at `epoch` now."""
        self.schedule.set_epoch(epoch)
        self.restart()

    @abstractmethod
    def at_tip(self) -> AbstractContextManager[None]:
        """Inside, the model's parameters are the state's own."""

    @abstractmethod
    def advancing(self, lineage: str) -> AbstractContextManager[torch.Tensor]:
        """(elements,) room for the decoded average of a commit that builds on `lineage`. Enter inside `at_tip`."""

    @abstractmethod
    def step(self, average: torch.Tensor, commit: Commit) -> None:
        """Apply the averaged contribution to the state, inside `at_tip` and `advancing`. `average` is used up."""
