"""The anchor row of every table: the model as it is, without training."""

from typing import Any

from torch import Tensor

from alignbench.methods.base import Method, Metrics
from alignbench.policy import Policy
from alignbench.rng import Draws
from alignbench.schedule import Draw, Steps


class Reference(Method):
    """Nothing is collected and nothing learned."""

    def __init__(self, **base: Any):
        super().__init__(**base)
        self.updates = Steps(0, 1, self.processes, 0, self.micro_batch, self.processes)

    @property
    def evaluated(self) -> Policy:
        return self.policy.reference

    def plan(self) -> dict[str, int]:
        return {}

    def collect(self, prompts: list[str], draws: Draws) -> Draw:
        raise NotImplementedError("method=reference does not train")

    def loss(self, batch: Any) -> tuple[Tensor, Metrics]:
        raise NotImplementedError("method=reference does not train")
