"""alignbench and the plain loop on one piece of work: what each does an epoch, timed, and where it spends it."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback
from plain import Plain
from torch import Tensor, nn

from alignbench.compose import compose
from alignbench.config import arguments
from alignbench.experiment import Experiment, made
from alignbench.methods.di_star import CriticTurn
from alignbench.models.stable_diffusion import StableDiffusion
from alignbench.rewards.brightness import Brightness, LightLeft
from alignbench.rng import Draws, generator
from alignbench.rollouts import Rollouts
from alignbench.run import settle

REWARD = {"pxpo": "light_left", "di_star": "brightness"}
NUMBERS = {
    "ddpo": ["method.advantage=batch"],
    "d3po": [],
    "pxpo": [],
    "kl_rlhf": ["method.inner_epochs=1"],
    "pso": [],
    "di_star": ["method.turns=1"],
}
MODEL = {"pso": "sandbox_four_step", "di_star": "sandbox_one_step"}  # for their samplers; the weights are the small pipeline's
PAIRED = ("d3po", "pso")


@dataclass(frozen=True)
class Case:
    """A method on the pipeline in `folder`: an epoch of one optimiser step on `images`; later: after weights have moved."""

    folder: Path
    method: str
    adapter: str
    images: int
    steps: int
    micro_batch: int  # images in a rollout, and rows of an update unless rows says more
    rows: int | None = None
    later: bool = False
    rank: int = 4
    processes: int = 1
    words: tuple[str, ...] = ()  # instead of the usual ones, or beside them

    @property
    def name(self) -> str:
        return f"{self.method} {self.adapter}{' later' * self.later}, micro-batch {self.micro_batch}"

    @property
    def all_words(self) -> list[str]:
        model = MODEL.get(self.method, "sandbox")
        items = self.images // 2 if self.method in PAIRED else self.images
        usual = [
            f"method={self.method}",
            f"model={model}",
            f"model.path={self.folder}",
            *(["model.init=null"] if model != "sandbox" else ["sampler.deterministic=0", f"sampler.steps={self.steps}", "guidance=5"]),
            "recipe=none",
            "dataset=animals",  # ddpo-pytorch's
            f"reward={REWARD.get(self.method, 'brightness')}",
            f"adapter={self.adapter}",
            f"lora.rank={self.rank}",
            f"lora.alpha={self.rank}",
            f"method.batch={items}",
            *([] if self.method == "di_star" else [f"method.images={self.images}"]),
            *NUMBERS[self.method],
            f"eval.batch={self.micro_batch}",
            f"trainer.micro_batch={self.rows or self.micro_batch}",
            f"trainer.devices={self.processes}",
            "trainer.accelerator=cpu",
            "eval=plain",
            "epochs=1",
        ]
        given = {word.partition("=")[0] for word in self.words}
        return [word for word in usual if word.partition("=")[0] not in given] + list(self.words)


class Side(Protocol):
    clock: "Clock"  # of the last epoch

    def exact(self) -> None:
        """From here on in float64."""

    def collect(self) -> None: ...
    def update(self, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """By hand, without a trainer; the gradients [of every weight by name] before they are clipped."""

    def epoch(self, count: int = 1) -> dict[str, float]:
        """So many epochs from the same start, in seconds of the wall and of the processor, of collecting and of learning."""

    def networks(self) -> list[nn.Module]: ...
    def decoder(self) -> nn.Module: ...


class Clock:
    """Seconds by name, of the wall and of this process' processors, and when each name was over."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.until: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.until[name] = time.process_time()
        self.seconds[f"{name}_wall"] = self.seconds.get(f"{name}_wall", 0.0) + time.perf_counter() - wall
        self.seconds[f"{name}_processor"] = self.seconds.get(f"{name}_processor", 0.0) + time.process_time() - processor


class Ours:
    """alignbench itself: the experiment that the words compose, and Lightning's trainer."""

    def __init__(self, case: Case, strategy: str = "auto"):
        self.case, self.strategy = case, strategy
        config = compose(case.all_words).config
        gc.collect()  # a run composes before torch is imported, and Python soon clears up after it; among so many objects it never would
        settle(config | {"trainer": config["trainer"] | {"threads": 0}})  # as a run does; how many threads, the benchmark says
        self.experiment = Experiment.build(config)
        self.method, model = self.experiment.method, self.experiment.model
        assert isinstance(model, StableDiffusion)
        self.model = model
        if case.later:
            for name, parameter in sorted(self.policy.items()):
                parameter.data += 1e-3 * torch.randn(parameter.shape, generator=generator(0, name))
        self.trained = {who: model.trainable(who) for who in ("policy", *self.method.copies) if who != "ema"}
        self.begin()

    def begin(self) -> None:
        """Note the weights of now as those that every epoch starts from."""
        self.start = {who: {name: each.detach().clone() for name, each in weights.items()} for who, weights in self.trained.items()}

    def exact(self) -> None:
        for part in (self.model, self.model.pipeline[0].text_encoder):  # the encoder is no part of the model's module
            part.double()
        self.begin()

    @property
    def policy(self) -> dict[str, nn.Parameter]:
        return self.model.trainable("policy")

    def networks(self) -> list[nn.Module]:
        return [self.model.denoiser, *self.model.copies.values()]

    def decoder(self) -> nn.Module:
        return self.model.vae.decoder

    @torch.no_grad()
    def reset(self) -> None:
        for who, weights in self.trained.items():
            for name, parameter in weights.items():
                parameter.copy_(self.start[who][name])

    def collect(self) -> None:
        self.reset()
        self.batches = self.experiment.collect()

    def update(self, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        optimizer, found = self.method.configure_optimizers(), {}
        optimizer.zero_grad()
        for number, batch in enumerate(self.batches, 1):
            loss, _ = self.method.loss(batch)
            backward(loss / self.method.updates.accumulate)
            if number % self.method.updates.accumulate == 0:
                for who in ("policy", "critic") if "critic" in self.trained else ("policy",):
                    found |= {name: each.grad.clone() for name, each in self.trained[who].items() if each.grad is not None}
                optimizer.step()
                optimizer.zero_grad()
        return found

    def epoch(self, count: int = 1) -> dict[str, float]:
        clock = self.clock = Clock()

        def collect() -> Any:
            with clock.on("rollout"):
                return self.experiment.collect()

        self.reset()
        over = Over()
        settings = arguments("trainer", self.experiment.config["trainer"]) | {"max_epochs": count, "strategy": self.strategy}
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = made(settings, accumulate_grad_batches=self.method.updates.accumulate, callbacks=[over], **quiet)
        trainer.fit(self.method, Rollouts(collect, len(self.method.updates)))
        return clock.seconds | {f"update_{kind}": over.seconds[kind] - clock.seconds[f"rollout_{kind}"] for kind in ("wall", "processor")}


class Over(Callback):
    """What a trainer's epochs take, from the start of the first to the end of the last."""

    def on_train_start(self, *_: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = {"wall": time.perf_counter() - self.began[0], "processor": time.process_time() - self.began[1]}


class Usual:
    """The plain loop, with alignbench's first weights, prompts and draws, as `given` has them."""

    def __init__(self, case: Case, given: dict[str, Any]):
        self.case, self.draws = case, Draws(0, 0)
        self.prompts, self.turns, self.start, self.shape = (given[key] for key in ("prompts", "turns", "start", "shape"))
        reward = LightLeft() if case.method == "pxpo" else Brightness()
        score = (lambda images: reward.map(images, [])) if case.method == "pxpo" else (lambda images: reward(images, []))
        numbers = case.method, case.adapter, case.micro_batch, given["method"], given["sampler"], case.rank
        self.plain = Plain(case.folder, *numbers, score)

    def exact(self) -> None:
        loop = self.plain
        for part in (*self.networks(), loop.vae, loop.encoder):
            part.double()
        loop.alpha_bar = loop.alpha_bar.double()
        if hasattr(loop, "ema"):
            loop.ema = [each.double() for each in loop.ema]

    def networks(self) -> list[nn.Module]:
        return [*self.plain.networks.values(), *([self.plain.reference] if hasattr(self.plain, "reference") else [])]

    def decoder(self) -> nn.Module:
        return self.plain.vae.decoder

    @torch.no_grad()
    def reset(self) -> None:
        for who, network in self.plain.networks.items():
            there = dict(network.named_parameters())
            for name, value in self.start[who].items():
                there[name].copy_(value)
        self.plain.optimizer.state.clear()

    def collect(self) -> None:
        self.reset()
        self._collect()

    def _collect(self) -> None:
        if self.case.method == "di_star":
            return
        start = None
        if self.case.method == "d3po":
            starts = self.draws.each("start", range(len(self.prompts) // 2))
            own = torch.stack([torch.randn(self.shape, generator=each) for each in starts])
            start = own.repeat_interleave(2, 0).to(self.plain.alpha_bar)
        self.plain.collect(self.prompts, self.draws.each("rollout", range(len(self.prompts))), start)

    def _learn(self) -> None:
        if self.case.method == "di_star":
            for kind, prompts, *draws in self.turns:
                self.plain.turn(kind, prompts, draws)
        else:
            self.plain.update()

    def update(self, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        usual, found = (self.plain.apply, self.plain.backward), {}

        def apply() -> None:
            for network in self.plain.networks.values():
                found.update({name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None})
            usual[0]()

        self.plain.backward, self.plain.apply = backward, apply  # type: ignore[method-assign]
        try:
            self._learn()
        finally:
            self.plain.apply, self.plain.backward = usual  # type: ignore[method-assign]
        return found

    def epoch(self, count: int = 1) -> dict[str, float]:
        clock = self.clock = Clock()
        for number in range(count):
            with clock.on("rollout"):
                self._collect() if number else self.collect()
            with clock.on("update"):
                self._learn()
        return clock.seconds


def taken(side: Side) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and the gradients of an epoch's optimiser step."""
    losses = []
    side.collect()

    def backward(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        loss.backward()

    return math.fsum(losses), {name: each.numpy() for name, each in side.update(backward).items()}


def given(ours: Ours) -> dict[str, Any]:
    """What the plain loop needs in order to do the same work: first weights, numbers, prompts and, of DI*, the turns' draws."""
    seen: list[list[str]] = []
    collect = ours.method.collect

    def noted(prompts: list[str], draws: Draws) -> Any:
        seen.append(prompts)
        return collect(prompts, draws)

    ours.method.collect = noted  # type: ignore[method-assign]
    batches, config, turns = ours.experiment.collect(), ours.experiment.config, []
    ours.method.collect = collect  # type: ignore[method-assign]
    if ours.case.method == "di_star":
        for turn in replace(batches, steps=replace(batches.steps, at_most=10**6)):
            kind = "critic" if isinstance(turn, CriticTurn) else "generator"
            turns.append((kind, list(turn.prompts), turn.z[:, 0], turn.eps, turn.t))
    return {
        "start": ours.start,
        "method": config["method"],
        "sampler": config["sampler"],
        "shape": ours.model.shape,
        "prompts": seen[0],
        "turns": turns,
    }
