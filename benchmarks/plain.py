"""The plain loop of these methods, as public scripts have it, in words of our own and without alignbench.

`micro_batch` images and one time step at a time, a backward pass for each, both halves of guidance in one forward, a second copy of the
network as the reference, prompts encoded batch by batch. Losses are those of alignbench's methods, so that both take the same optimiser
step: bench.py checks that to 1e-5 before it measures.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as of_diffusers
from diffusers.utils.torch_utils import randn_tensor
from peft import LoraConfig
from torch import Tensor
from transformers.utils import logging as of_transformers

Generators = list[torch.Generator]
Turn = tuple[Tensor, Tensor, Tensor]  # of DI*: starting noise z, noise of the diffused sample, its time


@dataclass
class Plain:
    """One method on one pipeline; `method` and `sampler` hold the numbers of alignbench's own config."""

    folder: Path
    name: str
    adapter: str
    micro_batch: int
    method: dict[str, Any]
    sampler: dict[str, Any]
    rank: int
    reward: Callable[[Tensor], Tensor]  # images [B,3,H,W] -> [B], or [B,H,W] for pxpo
    device: str = "cpu"
    autocast: bool = False  # bf16
    data: dict[str, Any] = field(default_factory=dict)
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()

    def __post_init__(self) -> None:
        for log in (of_diffusers, of_transformers):
            log.disable_progress_bar()
        pipeline = StableDiffusionPipeline.from_pretrained(self.folder, safety_checker=None, requires_safety_checker=False)
        self.tokenizer, self.encoder, self.vae = pipeline.tokenizer, pipeline.text_encoder, pipeline.vae
        self.scheduler, self.unet = pipeline.scheduler, pipeline.unet
        for part in (self.encoder, self.vae, self.unet):
            part.requires_grad_(False).eval().to(self.device)
        if self.name in ("d3po", "pso", "kl_rlhf", "di_star"):
            self.reference = copy.deepcopy(self.unet)
        self.networks = {"policy": self.unet}
        if self.name == "di_star":
            self.networks["critic"] = copy.deepcopy(self.unet)
        groups = []
        for who, network in self.networks.items():
            if self.adapter == "lora":
                targets = ["to_q", "to_k", "to_v", "to_out.0"]
                network.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=targets), adapter_name=who)
            else:
                network.requires_grad_(True)
            groups.append({"params": [each for each in network.parameters() if each.requires_grad]})
        if self.name == "di_star":
            groups[1]["lr"] = self.method["critic_lr"]
            self.ema = [each.detach().clone() for each in groups[0]["params"]]
        numbers = {key: value for key, value in self.method["optimizer"].items() if not key.startswith("_")}
        self.optimizer = torch.optim.AdamW(groups, **numbers)
        self.times = self.sampler.get("times", [])  # of few-step samplers; DI* takes one step, at sampler.time
        if "steps" in self.sampler:
            self.scheduler.set_timesteps(self.sampler["steps"])
            self.times = self.scheduler.timesteps.tolist()
        self.steps = len(self.times)
        self.trained = range(self.steps - 1 if "times" in self.sampler else self.steps)
        self.alpha_bar = self.scheduler.alphas_cumprod.to(self.device)

    # ---- the pipeline

    def encode(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return self.encoder(tokens.input_ids.to(self.device))[0]

    def decode(self, x: Tensor) -> Tensor:
        return (self.vae.decode(x / self.vae.config.scaling_factor).sample.float() / 2 + 0.5).clamp(0, 1)

    def noise(self, count: int, generators: Generators) -> Tensor:
        size = self.unet.config.sample_size
        shape = (count, self.unet.config.in_channels, size, size)
        return randn_tensor(shape, generators, torch.device(self.device), torch.float32).to(self.alpha_bar.dtype)

    def eps(self, unet: Any, x: Tensor, t: Any, cond: Tensor, empty: Tensor, guidance: float) -> Tensor:
        if guidance == 1:
            return unet(x, t, encoder_hidden_states=cond).sample.to(x.dtype)
        both = torch.cat([t, t]) if isinstance(t, Tensor) else t
        without, with_ = unet(torch.cat([x, x]), both, encoder_hidden_states=torch.cat([empty, cond])).sample.to(x.dtype).chunk(2)
        return without + guidance * (with_ - without)

    def step(self, unet: Any, x: Tensor, j: int, cond: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of step j: DDIM with eta 1, or a few-step model's re-noising."""
        t = self.times[j]
        eps = self.eps(unet, x, t, cond, empty, self.sampler["guidance"])
        here = self.alpha_bar[t]
        x0 = (x - (1 - here).sqrt() * eps) / here.sqrt()
        if "times" in self.sampler:
            there = self.alpha_bar[self.times[j + 1]] if j + 1 < self.steps else torch.ones_like(here)
            return there.sqrt() * x0, (1 - there).sqrt()
        back = t - self.scheduler.config.num_train_timesteps // self.steps
        there = self.alpha_bar[back] if back >= 0 else self.scheduler.final_alpha_cumprod.to(x.device)
        std = self.sampler["eta"] * ((1 - there) / (1 - here) * (1 - here / there)).sqrt()
        return there.sqrt() * x0 + (1 - there - std**2).sqrt() * eps, std

    def log_prob(self, y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The mean over the latent's elements; of PXPO, over channels."""
        each = -((y - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
        return each.mean(1) if self.name == "pxpo" else each.mean((1, 2, 3))

    # ---- collecting

    @torch.no_grad()
    def collect(self, prompts: list[str], generators: Generators, start: Tensor | None) -> None:
        """Trajectories, their log-probabilities and rewards."""
        states, log_probs, conds, images = [], [], [], []
        for first in range(0, len(prompts), self.micro_batch):
            own = generators[first : first + self.micro_batch]
            cond, empty = self.encode(prompts[first : first + self.micro_batch]), self.encode([""] * len(own))
            x = start[first : first + len(own)] if start is not None else None
            if x is None:
                x = self.noise(len(own), own)
            along, likely = [x], []
            with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                for j in range(self.steps):
                    mean, std = self.step(self.unet, x, j, cond, empty)
                    x = mean + std * self.noise(len(own), own)
                    along.append(x)
                    if j in self.trained:
                        likely.append(self.log_prob(x, mean, std))
            images.append(self.decode(x))
            states.append(torch.stack(along, 1))
            log_probs.append(torch.stack(likely, 1))
            conds.append(cond)
        rewards = torch.cat([self.reward(each) for each in images])
        self.data = {"x": torch.cat(states), "log_prob": torch.cat(log_probs), "cond": torch.cat(conds), "reward": rewards}
        if self.name == "pxpo":
            rewards = F.adaptive_avg_pool2d(rewards[:, None], states[0].shape[-2:])[:, 0]
        if self.name in ("ddpo", "pxpo"):
            limit = self.method["advantage_clip"]
            self.data["advantage"] = ((rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)).clamp(-limit, limit)

    # ---- learning

    def update(self) -> None:
        """One optimiser step from all that was collected."""
        parts = list(self.parts())
        empty = self.encode([""] * self.micro_batch)
        for part in parts:
            for j in self.trained:
                with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                    loss = self.loss(part, j, empty[: part.shape[-1]])
                self.backward(loss / (len(parts) * len(self.trained)))
        self.apply()

    def parts(self) -> Iterator[Tensor]:
        """Images [n], or winners and losers [2,n], of one forward pass; of two equal images the first has won."""
        if self.name not in ("d3po", "pso"):
            yield from torch.arange(len(self.data["x"])).split(self.micro_batch)
            return
        pairs = torch.arange(len(self.data["x"])).view(-1, 2)
        better = self.data["reward"].cpu()[pairs].argmax(1, keepdim=True)
        yield from torch.cat([pairs.gather(1, better), pairs.gather(1, 1 - better)], 1).T.split(self.micro_batch, dim=1)

    def loss(self, part: Tensor, j: int, empty: Tensor) -> Tensor:
        """The mean over a part of the method's loss at step j."""
        if self.name in ("d3po", "pso"):
            won, lost = (self.compared(each, j, empty) for each in part)
            if clip := self.method["clip"]:
                won, lost = (each.exp().clamp(1 - clip, 1 + clip).log() for each in (won, lost))
            return -F.logsigmoid(self.method["beta"] * (won - lost)).mean()
        x, y, cond = self.data["x"][part, j], self.data["x"][part, j + 1], self.data["cond"][part]
        mean, std = self.step(self.unet, x, j, cond, empty)
        log_prob = self.log_prob(y, mean, std)
        if self.name == "pxpo":
            return -(self.data["advantage"][part] * log_prob).mean()
        ratio, clip = (log_prob - self.data["log_prob"][part, j]).exp(), self.method["clip"]
        advantage = self.data["advantage" if self.name == "ddpo" else "reward"][part]
        surrogate = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
        if self.name == "ddpo":
            return surrogate
        with torch.no_grad():
            anchor, _ = self.step(self.reference, x, j, cond, empty)
        return self.method["reward_weight"] * surrogate + self.method["kl"] * ((mean - anchor) ** 2 / (2 * std**2)).mean()

    def compared(self, part: Tensor, j: int, empty: Tensor) -> Tensor:
        """The log-ratio to the reference of the steps taken."""
        x, y, cond = self.data["x"][part, j], self.data["x"][part, j + 1], self.data["cond"][part]
        log_prob = self.log_prob(y, *self.step(self.unet, x, j, cond, empty))
        with torch.no_grad():
            reference = self.log_prob(y, *self.step(self.reference, x, j, cond, empty))
        return log_prob - reference

    def apply(self) -> None:
        given = [each for group in self.optimizer.param_groups for each in group["params"] if each.grad is not None]
        torch.nn.utils.clip_grad_norm_(given, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    # ---- DI*

    def turn(self, kind: str, prompts: list[str], draws: Turn) -> None:
        """A turn of the critic or of the generator, in parts of micro_batch."""
        count = -(-len(prompts) // self.micro_batch)
        for first in range(0, len(prompts), self.micro_batch):
            z, noise, t = (each[first : first + self.micro_batch] for each in draws)
            cond = self.encode(prompts[first : first + self.micro_batch])
            with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                loss = (self.critic_loss if kind == "critic" else self.generator_loss)(z, noise, t, cond)
            self.backward(loss / count)
        self.apply()
        if kind == "generator":
            with torch.no_grad():
                for average, current in zip(self.ema, self.optimizer.param_groups[0]["params"], strict=True):
                    average.lerp_(current, 1 - self.method["ema"])

    def generated(self, z: Tensor, cond: Tensor) -> Tensor:
        alpha, sigma = self.alpha_bar[self.sampler["time"]].sqrt(), (1 - self.alpha_bar[self.sampler["time"]]).sqrt()
        x = sigma * z
        return (x - sigma * self.unet(x, self.sampler["time"], encoder_hidden_states=cond).sample.to(x.dtype)) / alpha

    def diffused(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = (each[:, None, None, None] for each in (self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt()))
        return alpha * x0 + sigma * noise, alpha, sigma

    def critic_loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        with torch.no_grad():
            x_t, *_ = self.diffused(self.generated(z, cond), noise, t)
        return ((self.networks["critic"](x_t, t, encoder_hidden_states=cond).sample.to(z.dtype) - noise) ** 2).mean()

    def generator_loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        critic = self.networks["critic"]
        wanted = [each for each in critic.parameters() if each.requires_grad]
        for each in wanted:
            each.requires_grad_(False)
        x0 = self.generated(z, cond)
        x_t, alpha, sigma = self.diffused(x0, noise, t)
        own = (x_t - sigma * self.eps(critic, x_t, t, cond, cond, 1.0)) / alpha
        kept = self.encode([""] * len(z))
        away = (x_t - sigma * self.eps(self.reference, x_t, t, cond, kept, self.method["guidance"])) / alpha
        for each in wanted:
            each.requires_grad_(True)
        gap = (own - away).flatten(1)
        slope = gap / (gap.square().sum(1, keepdim=True) + self.method["huber"] ** 2).sqrt()
        divergence = -(slope * (own - x0).flatten(1)).sum(1).mean()
        return divergence - self.method["reward_weight"] * self.reward(self.decode(x0)).mean()
