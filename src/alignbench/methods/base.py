"""What a method is: how its data is made (`collect`) and its loss. The only LightningModule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from alignbench import ranks
from alignbench.beside import Beside
from alignbench.config import MissingAsset
from alignbench.models.base import Spec
from alignbench.policy import Over, Policy
from alignbench.rewards.judge import Judge
from alignbench.rng import Draws, Generators
from alignbench.rollouts import Batches
from alignbench.schedule import Schedule
from alignbench.tables import Rollout

Metrics = dict[str, Tensor]


class Method(LightningModule, ABC):
    """Subclasses hold an algorithm's numbers and nothing else; `loss` is a pure function of weights and batch."""

    updates: Schedule  # how much is collected and in what portions it is learned from
    copies: tuple[str, ...] = ()  # trainable or averaged copies beside the policy, which `grow` makes

    def __init__(
        self,
        *,
        policy: Policy,
        judge: Judge,
        micro_batch: int,
        processes: int,
        overlap: bool = False,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] | None = None,
    ):
        """micro_batch: rows a forward pass may hold; processes: how many share the work; overlap: score images while the next are sampled
        (none of these changes a result); optimizer: makes the optimiser from parameters or groups of them; none for a method that does not
        train.
        """
        super().__init__()
        self.policy, self.judge, self._optimizer = policy, judge, optimizer
        self.micro_batch, self.processes, self.overlap = micro_batch, processes, overlap
        self.strict_loading = False  # a checkpoint holds what is trained; the frozen base is the model's own files
        self.collected: dict[str, float] = {}
        self._signal = False  # whether any batch of the update so far had one
        self._noted: dict[str, tuple[Tensor | float, int]] = {}  # of the epoch's batches: by name a value times its rows, and rows

    @abstractmethod
    def collect(self, prompts: list[str], draws: Draws) -> Batches:
        """One epoch of minibatches from the current policy; sets `collected` to what is worth logging of the data itself."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Metrics]:
        """The loss to minimise and what to log of it."""

    @abstractmethod
    def plan(self) -> dict[str, int]:
        """Network evaluations an epoch by role, as the meters will count them; the first takes `spared` fewer."""

    @property
    def spared(self) -> int:
        """Network evaluations that the first epoch does without, where the reference is still the policy."""
        return 0

    @property
    def queries(self) -> int:
        """Reward queries an epoch."""
        return self.updates.images

    @property
    def judges(self) -> list[Judge]:
        """Who is asked in training."""
        return [self.judge]

    @property
    def optimises(self) -> bool:
        """Whether the evaluated policy owes anything to the reward; if not, the reward is one more held-out judge."""
        return self.queries > 0

    @property
    def sources(self) -> tuple[str, ...]:
        """What it learns from beside the reward: names of data, as a reward's `datasets`; nothing for what it samples itself."""
        return ()

    @property
    def evaluated(self) -> Policy:
        """What is validated, tested and exported."""
        return self.policy

    def grow(self, spec: Spec) -> None:
        """Make `copies`; called once, after the policy itself has been grown."""

    @torch.no_grad()
    def sample(
        self, prompts: list[str], over: Over, generators: Generators, start: Tensor | None = None, policy: Policy | None = None
    ) -> tuple[Rollout, Tensor]:
        """A rollout of the policy (or another) from `start` [B,C,h,w] (or its own noise), and rewards [B] in fp32, NaN where there is none.

        With judging.overlap a chunk is scored while the next is sampled. Each process samples and scores its share.
        """
        policy = policy or self.policy
        if not self.overlap or self.judge.reward.grouped:
            rollout = policy.rollout(prompts, over, generators, start)
            return rollout, self.score(rollout, prompts)
        parts, asked, texts = [], [], iter([prompts[row] for row in ranks.mine(len(prompts))])
        ask, judging = torch.no_grad()(self.judge.score), Beside[Tensor]()  # a thread has its own mode
        try:
            for part in policy.chunks(prompts, over, generators, start):
                asked.append(judging.ask(partial(ask, policy.images(part), list(islice(texts, len(part))))))
                parts.append(part)
                if any(each.done() and each.exception() for each in asked):
                    break
            scores = self._agreed(lambda: torch.cat([each.result() for each in asked]))
        finally:
            judging.end()
        rollout = ranks.gathered_table(Rollout.cat(parts), len(prompts))
        return rollout, self._gathered(self.judge, scores, len(prompts))

    def score(self, rollout: Rollout, prompts: list[str], judge: Judge | None = None) -> Tensor:
        """The reward (or another judge's score) of each final image: [B] in fp32, NaN where it has none. Each process scores its share."""
        return self._judged(judge or self.judge, (judge or self.judge).score, rollout, prompts)

    def score_map(self, rollout: Rollout, prompts: list[str]) -> Tensor:
        """The reward of each pixel: [B,H,W] in fp32, NaN everywhere in an image that has none."""
        return self._judged(self.judge, self.judge.map, rollout, prompts)

    @torch.no_grad()
    def _judged(self, judge: Judge, ask: Callable[[Tensor, list[str]], Tensor], rollout: Rollout, prompts: list[str]) -> Tensor:
        """Chunk by chunk; images that are judged together are put together first, and every process asks about all."""
        mine, chunk = ranks.mine(len(prompts)), self.policy.chunk
        parts = [mine[start : start + chunk] for start in range(0, len(mine), chunk)]
        if judge.reward.grouped:
            images = ranks.gathered(torch.cat([self.policy.images(rollout, rows) for rows in parts]), len(prompts))
            return self._gathered(judge, self._agreed(lambda: ask(images, prompts)[mine]), len(prompts))

        def scores() -> Tensor:
            return torch.cat([ask(self.policy.images(rollout, rows), [prompts[row] for row in rows]) for rows in parts])

        return self._gathered(judge, self._agreed(scores), len(prompts))

    def _agreed(self, scores: Callable[[], Tensor]) -> Tensor:
        """This process's scores, once every process has its own: where one judge fails, all processes say why."""
        found, failure = torch.empty(0), None
        try:
            found = scores()
        except (ValueError, MissingAsset) as error:
            failure = error
        ranks.agree(failure)
        return found

    def _gathered(self, judge: Judge, part: Tensor, count: int) -> Tensor:
        scores = ranks.gathered(part, count)
        judge.look_at(scores)
        self.policy.model.meters.unscored(int(scores.reshape(count, -1).isnan().any(1).sum()))
        return scores

    def idle(self, batch: Any) -> bool:
        """Whether a batch holds no signal at all. Such a batch leaves no gradient, so that not even weight decay moves a weight."""
        return False

    def on_train_epoch_start(self) -> None:
        self._noted.clear()

    def _note(self, values: Metrics, rows: int) -> None:
        """Count a batch's values towards the epoch's means. Lightning's `log` would take 2 ms of every batch."""
        for name, value in values.items():
            total, count = self._noted.get(name, (0.0, 0))
            self._noted[name] = total + value.detach().float() * rows, count + rows

    def learned(self) -> dict[str, float]:
        """What the epoch's batches said, each the mean over their rows and all processes (which ask together), and its collection."""
        if not self._noted:
            return self.collected
        totals, counts = zip(*self._noted.values(), strict=True)
        summed = ranks.summed(torch.stack([torch.stack(totals), torch.tensor(counts).to(totals[0])]))
        return {**dict(zip(self._noted, (summed[0] / summed[1]).tolist(), strict=True)), **self.collected}

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        loss, metrics = self.loss(batch)
        self._note({"loss": loss, **metrics}, len(batch))
        idle = self.idle(batch)
        self._signal |= not idle
        return None if idle and self.processes == 1 else loss  # Lightning refuses None from one process of several; its gradient is 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Where no process found a signal in any part of an update, its gradient of 0 is taken away, as for one process."""
        if self.processes > 1 and not self.trainer.strategy.reduce_boolean_decision(self._signal, all=False):
            optimizer.zero_grad()
        self._signal = False

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None) -> None:
        """Gradients go as soon as they are used: Lightning alone keeps them through the next rollout and forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.policy.trainable().values())

    def optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """method.optimizer over parameters or groups of them, in one fused kernel where torch has one and the config does not say
        otherwise: an AdamW's step then takes a third of the time on a CPU, and no memory besides its state.
        """
        if self._optimizer is None:
            raise ValueError("method.optimizer: missing; name one, as conf/method/ddpo.yaml does")
        made = self._optimizer(parameters)
        for group in made.param_groups:  # not in its constructor: Lightning clips no gradient in bf16 for one that is built fused
            if "fused" in group and group["fused"] is None and group["foreach"] is None:
                group["fused"] = True
        return made

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        copies = {id(each) for who in self.copies for each in self.policy.model.trainable(who).values()}
        kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad or id(parameter) in copies}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in kept or name.endswith("_extra_state")
        }
        checkpoint["meters"] = self.policy.model.meters.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.policy.model.meters.load(checkpoint["meters"])
