"""What a method is: how its data is made (`collect`) and its loss. The only LightningModule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from alignbench.policy import Policy
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws
from alignbench.rollouts import Batches
from alignbench.tables import Updates

Metrics = dict[str, Tensor]


class Method(LightningModule, ABC):
    """Subclasses hold an algorithm's numbers and nothing else; `loss` is a pure function of weights and batch."""

    updates: Updates  # how much is collected and in what portions it is learned from

    def __init__(
        self, *, policy: Policy, judge: Judge, optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], micro_batch: int
    ):
        """optimizer: makes the optimiser from parameters; micro_batch: rows a forward pass may hold (changes no result)."""
        super().__init__()
        self.policy, self.judge, self.optimizer, self.micro_batch = policy, judge, optimizer, micro_batch
        self.strict_loading = False  # a checkpoint holds what is trained; the frozen base is the model's own files
        self.collected: dict[str, float] = {}

    @abstractmethod
    def collect(self, prompts: list[str], draws: Draws) -> Batches:
        """One epoch of minibatches from the current policy; sets `collected` to what is worth logging of the data itself."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Metrics]:
        """The loss to minimise and what to log of it."""

    def plan(self) -> dict[str, int]:
        """Network evaluations an epoch by role, as the meters will count them: here one rollout, then its trained steps with gradient."""
        collected = self.updates.images * self.policy.sampler.steps
        return {"policy": (collected + 3 * self.updates.trained_rows) * self.policy.sampler.evaluations}

    def idle(self, batch: Any) -> bool:
        """Whether a batch holds no signal at all. Such a batch leaves no gradient, so that not even weight decay moves a weight."""
        return False

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        loss, metrics = self.loss(batch)
        # logged for idle batches too: Lightning repeats what it was last told, and a resumed run was told nothing
        self.log_dict({"loss": loss.detach(), **metrics}, on_step=False, on_epoch=True, batch_size=len(batch))
        return None if self.idle(batch) else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.policy.trainable().values())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in kept or name.endswith("_extra_state")
        }
        checkpoint["meters"] = self.policy.model.meters.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.policy.model.meters.load(checkpoint["meters"])
