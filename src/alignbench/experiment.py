"""The objects that a config names, wired: what is collected, what is scored, and what a run will cost."""

import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Trainer

from alignbench.checkpoint import AtomicCheckpointIO, Damaged, of_peak
from alignbench.compose import compose
from alignbench.config import ECONOMIES, MissingAsset, arguments
from alignbench.datasets.base import Prompts, draw, spread, too_few
from alignbench.datasets.pictures import Pictures
from alignbench.evaluation.evaluate import Scored, label_of, score
from alignbench.evaluation.measures import Measures, real_features, set_rows
from alignbench.features.base import FeatureSpace
from alignbench.methods.base import Method
from alignbench.models.base import Diffusion, Spec
from alignbench.models.gaussian_world import GaussianWorld
from alignbench.policy import Policy
from alignbench.probe import Fit, fit
from alignbench.report.record import read_result
from alignbench.rewards.base import Reward
from alignbench.rewards.judge import Guard, Judge
from alignbench.rewards.memory import Memory
from alignbench.rewards.quarantine import Quarantine
from alignbench.rng import Draws
from alignbench.schedule import Updates

WHO = "policy"
COLUMNS = ("who", "split", "seed", "epoch", "prompt_id", "prompt", "k", "image")  # of samples.parquet, beside what judges and measures give


def made(node: dict[str, Any], **given: Any) -> Any:
    """What a checked node's `_target_` makes of its plain values and of what the code gives."""
    try:
        return instantiate(node, _convert_="all", **given)
    except InstantiationException as error:  # Hydra's envelope: what the constructor raised is what the user should read
        raise error.__cause__ or error from None


def _one_a_name(reward: Reward, others: list[Reward]) -> list[Reward]:
    """The judges that only evaluate; of one that is there already nothing but a line is left. Raises ValueError for another of its name."""
    there = {reward.name: reward}
    for other in others:
        known = there.setdefault(other.name, other)
        if known is other:
            continue
        place = "the trained reward" if known is reward else "one before it"
        if known.identity() != other.identity():
            raise ValueError(
                f"eval.judges: {other.name} has the name of {place} and other settings or weights, where a table has one column a name; "
                "give both the same, or leave it out (eval=plain has no judges, another preset has others)"
            )
        warnings.warn(f"eval.judges: {other.name} is {place}, and stands in the table once", stacklevel=2)
    return [other for other in there.values() if other is not reward]


def method_of(config: dict[str, Any], policy: Policy, judge: Judge) -> Method:
    return made(
        arguments("method", config["method"]),
        policy=policy,
        judge=judge,
        overlap=config["judging"]["overlap"],
        micro_batch=1 if config["trainer"]["micro_batch"] == "auto" else config["trainer"]["micro_batch"],  # until it is probed
        processes=config["trainer"]["devices"] * config["trainer"].get("num_nodes", 1),
    )


def measures_of(config: dict[str, Any]) -> Measures:
    """Raises ValueError for what is no feature space, and for two of one name: their columns would be one."""
    options = config["eval"]
    spaces = [made(each) for each in options["features"]]
    if wrong := [type(each).__name__ for each in spaces if not isinstance(each, FeatureSpace)]:
        raise ValueError(f"eval.features: {wrong[0]} is no feature space; rewards go under eval.judges, LPIPS under eval.lpips")
    if twice := {space.name for space in spaces if sum(other.name == space.name for other in spaces) > 1}:
        raise ValueError(f"eval.features: {min(twice)} is there twice; take one out")
    return Measures(spaces, made(options["lpips"]) if options["lpips"] else None, options["reference_times"])


def guard_of(config: dict[str, Any], folder: Path | None, told: dict[str, int]) -> Guard:
    """folder: of the run, if there is one; told: what is said of the moment at which an image is kept aside."""
    quarantine = Quarantine(folder / "quarantine", told) if folder else None
    memory = Memory(Path(config["output"]) / ".scores.sqlite") if config["judging"]["cache"] else None
    return Guard(config["judging"]["on_error"], config["judging"]["patience"], quarantine, memory)


@dataclass
class Experiment:
    config: dict[str, Any]
    model: Diffusion
    spec: Spec
    policy: Policy
    reward: Reward
    judges: list[Judge]  # the trained reward first, then those that only evaluate
    measures: Measures
    real: Pictures | None  # what sets of images are compared with beside the reference's
    prompts: Prompts
    method: Method
    told: dict[str, int]  # seed and epoch, for what is kept aside
    taught: tuple[str, ...] = ()  # what the weights learned from beside the reward, as `label_of` takes it
    trainer: Trainer | None = None
    fit: Fit | None = None  # what trainer.micro_batch=auto has found

    @classmethod
    def build(cls, config: dict[str, Any], folder: Path | None = None, *, trains: bool = True) -> "Experiment":
        """Instantiate every group. folder: the run's, for what is kept aside; trains: whether prompts to train on are wanted, too.

        Raises ValueError for numbers that do not fit together, MissingAsset for weights that are not here.
        """
        prompts: Prompts = made(config["dataset"])  # first: a wrong file is found before weights are loaded
        if lacking := too_few(prompts, config["eval"], trains=trains and bool(config["epochs"])):
            raise ValueError(lacking)
        torch.default_generator.manual_seed(config["seed"])  # adapters' initial weights, on the CPU; everything later is keyed by rng.py
        model: Diffusion = made(arguments("model", config["model"]))
        if pixels := config["eval"].get("pixels"):
            model.latent(pixels, "eval.pixels")  # a size that cannot be is said before training, not after
        spec = Spec(config["adapter"], config["lora"]["rank"], config["lora"]["alpha"], tuple(config["lora"]["targets"]))
        if config["epochs"]:
            model.grow(WHO, spec, model.start)
        who, offload = WHO if config["epochs"] else model.start, config["trainer"]["offload_rollouts"]
        policy = Policy(model, made(config["sampler"]), who, config["eval"]["batch"], offload)
        reward: Reward = made(config["reward"])
        others = _one_a_name(reward, [made(each) for each in config["eval"]["judges"]])
        with torch.random.fork_rng(devices=[]):  # a network that is made and then filled draws: training must not feel what is measured
            measures = measures_of(config)
        if taken := [each.name for each in (reward, *others) if each.name in (*COLUMNS, *measures.columns)]:
            raise ValueError(f"a judge that calls itself {taken[0]!r} would take the place of another column; give it another name")
        told = {"seed": config["seed"], "epoch": 0}
        judges = [Judge(each, model.meters, guard_of(config, folder, told)) for each in (reward, *others)]
        method = method_of(config, policy, judges[0])
        method.grow(spec)
        model.economise(**{key: config["trainer"][key] for key in ECONOMIES})
        real = made(config["eval"]["real"]) if config["eval"]["real"] else None
        built = cls(config, model, spec, policy, reward, judges, measures, real, prompts, method, told, method.sources)
        if config["eval"]["patience"] is not None and not (built.choosers and config["eval"]["every"]):
            raise ValueError(f"eval.patience={config['eval']['patience']}: nothing to wait for; {built._chosen()}")
        return built

    @classmethod
    def finished(cls, folder: Path, config: dict[str, Any] | None = None, peak: int | None = None) -> "Experiment":
        """A finished run's experiment with what it has trained. Raises ValueError where this version would not make the same run.

        config: to build it with, where another evaluation than the run's is wanted; peak: the epoch of its best checkpoint, None: the last.
        """
        result = read_result(folder)
        composed = compose([*shlex.split(result["command"])[3:], f"output={folder.parent}"])
        if composed.hash != result["hash"]:
            raise ValueError(f"{folder}: made by another version of alignbench or other weights; run `{result['command']}` again")
        experiment = cls.build(config or composed.config, trains=config is None)
        if composed.config["epochs"]:
            checkpoints = folder / "checkpoints"
            path = checkpoints / "last.ckpt" if peak is None else of_peak(checkpoints, peak)
            if not path.is_file():
                raise MissingAsset(f"{path}: not there; `{result['command']}` makes the run again")
            try:
                checkpoint = AtomicCheckpointIO(composed.hash).load_checkpoint(path)
            except Damaged as damage:
                raise MissingAsset(str(damage)) from damage
            experiment.method.load_state_dict(checkpoint["state_dict"], strict=False)
        experiment.settle()
        return experiment

    def settle(self) -> None:
        """Take the device and the precision of a trainer that is not going to train."""
        self.attach(made(arguments("trainer", self.config["trainer"]), logger=False, enable_progress_bar=False))

    def attach(self, trainer: Trainer) -> None:
        """Take the trainer's device and precision, for what happens outside its own loop too."""
        self.trainer = trainer
        self.method.to(trainer.strategy.root_device)
        for judge in self.judges:
            judge.to(trainer.strategy.root_device)
        for network in self.measures.networks:
            network.to(trainer.strategy.root_device)

    def take_what_fits(self) -> None:
        """With trainer.micro_batch=auto: measure, and learn from as many rows at once as fit. All of the run's processes take part."""
        options, seed = self.config["trainer"], self.config["seed"]
        if self.trainer is None or options["micro_batch"] != "auto" or not self.config["epochs"]:
            return
        self.fit = fit(self.method, self.prompts.train[0], seed, options["memory_share"], self.precision)
        self.method.micro_batch, self.method.updates = self.fit.rows, self.method.updates.at_once(self.fit.rows)
        self.trainer.accumulate_grad_batches = self.method.updates.accumulate

    def precision(self) -> AbstractContextManager[None]:
        """The update's autocast: outside it the first importance ratio of a mixed-precision run would not be 1."""
        return self.trainer.precision_plugin.forward_context() if self.trainer else nullcontext()

    def collect(self) -> Any:
        """This epoch's minibatches, from the current policy."""
        draws = Draws(self.config["seed"], self.trainer.current_epoch if self.trainer else 0)
        self.told["epoch"] = draws.epoch
        updates = self.method.updates
        each = updates.images_per_prompt
        prompts = draw(self.prompts.train, updates.images // each, each, draws.one("prompts"))
        with self.precision():
            return self.method.collect(prompts, draws)

    def scored(self, split: str, count: int, policy: Policy) -> Scored:
        options, prompts = self.config["eval"], getattr(self.prompts, split)
        chosen = {index: prompts[index] for index in spread(prompts, count)}
        with self.precision(), self.model.sized(options.get("pixels")):
            return score(policy, self.judges, self.measures, chosen, options["images"], options["noise"])

    def sets(self, scored: dict[str, Scored]) -> list[dict[str, Any]]:
        """How far the policy's images as a set are from the reference's, and both from real ones: the result's rows."""
        options, sides = self.config["eval"], {who: side.features for who, side in scored.items()}
        if self.real is not None:
            count = options["prompts"] * options["images"]
            sides["real"] = real_features(self.measures, self.real, count, options["noise"], options["batch"], self.model.device)
        return set_rows(sides, self.measures.spaces, options["precision_neighbours"], options["coverage_neighbours"])

    def validate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """On validation prompts: means, which are one point of every curve, and a row an image (whose prompt is known by its number)."""
        scored = self.scored("validation", self.config["eval"]["validation_prompts"], self.method.evaluated)
        means = {name: scored.mean(name) for name in (*(judge.reward.name for judge in self.judges), *scored.measured)}
        rows = [{key: value for key, value in row.items() if key != "prompt"} for row in scored.rows]
        return {"reward": means[self.reward.name], **means}, rows

    @property
    def labels(self) -> dict[str, str]:
        """What each judge's scores are evidence of, by name."""
        return {judge.reward.name: label_of(judge.reward, self.trained, self.taught)[0] for judge in self.judges}

    @property
    def trained(self) -> Reward | None:
        """The reward that training optimises, if one."""
        return self.reward if self.method.optimises else None

    @property
    def choosers(self) -> list[str]:
        """The judges whose validation scores choose the best checkpoint."""
        wanted = {"held_out": "held out", "trained": "trained", None: ""}[self.config["eval"]["peak"]]
        return [name for name, label in self.labels.items() if label == wanted]

    @contextmanager
    def at(self, checkpoint: Path, run: str) -> Iterator[None]:
        """Within it the method has the weights of a checkpoint of this run (by its hash). Raises Damaged."""
        before = {name: value.detach().cpu().clone() for name, value in self.method.state_dict().items() if isinstance(value, torch.Tensor)}
        saved = AtomicCheckpointIO(run).load_checkpoint(checkpoint)["state_dict"]
        kept = {name: before[name] for name in saved if name in before}
        self.method.load_state_dict({name: value for name, value in saved.items() if name in kept}, strict=False)
        try:
            yield
        finally:
            self.method.load_state_dict(kept, strict=False)

    @property
    def identities(self) -> dict[str, dict[str, str]]:
        """Who scores and measures this run, in training and in evaluation, by name; a feature space may be called as a judge is."""
        judges = {judge.reward.name: judge.identity for judge in (*self.method.judges, *self.judges)}
        return judges | {f"features: {network.name}": network.identity() for network in self.measures.networks}

    @property
    def trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.policy.trainable().values())

    def plan(self) -> str:
        """What will happen, before it does."""
        options, epochs = self.config["eval"], self.config["epochs"]
        tested = f"{options['prompts'] * options['images']} images of {options['prompts']} test prompts, of the reference and of the policy"
        if not epochs:
            return rows({**terms(self.config), "evaluation": f"{tested}; nothing is trained"})
        evaluations, waiting = planned(epochs, self.method), self.config["trainer"]["micro_batch"] == "auto"
        return rows(
            terms(self.config)
            | {"trains": f"{self.trainable_parameters:,} parameters ({self.spec.kind}) on {self.model.device}"}
            | costs(self.config, self.method)
            | ({"micro-batch": str(self.fit or "auto: probed once the processes have met")} if waiting else {})
            | {
                "checkpoints": f"{2 * 3 * 4 * self.trainable_parameters / 1e6:.0f} MB: weights and optimiser, two generations",
                "evaluation": tested,
                "best checkpoint": self._chosen(),
                "estimated time": f"{_duration(self._seconds(evaluations))} of training",
            }
        )

    def _chosen(self) -> str:
        wanted = self.config["eval"]["peak"]
        if wanted is None or not self.config["eval"]["every"]:
            return "none is chosen; eval.peak and eval.every say by whom and how often"
        if not self.choosers:
            return f"none is chosen: no judge of the evaluation is held out from {self.reward.name}; add one to eval.judges"
        patience = self.config["eval"]["patience"]
        until = f", and training ends after {patience} without a better one" if patience else ""
        return f"chosen by {', '.join(self.choosers)} on validation prompts{until}"

    @torch.no_grad()
    def _seconds(self, evaluations: int) -> float:
        """Evaluations times what one costs here, by one timed forward pass (the second: the first one warms up)."""
        rows, device = min(64, self.method.micro_batch), self.model.device
        x = torch.zeros(rows, *self.model.shape, device=device, dtype=self.model.dtype)
        t = torch.zeros(rows, dtype=torch.long, device=device)
        cond = self.model.encode([""]).expand(rows, -1, -1)
        with self.model.meters.paused(), self.precision():
            for _ in range(2):
                started = time.perf_counter()
                self.model.eps(x, t, cond, self.policy.who).sum().item()
        return evaluations * (time.perf_counter() - started) / rows


def outline(config: dict[str, Any]) -> str:
    """What a run would cost where its weights are not here: its method on a world without weights, and a reward that is asked nothing."""
    if not config["epochs"] or "path" in config["method"]:  # nothing to train, or trajectories of the real model are needed
        return rows(terms(config))
    world = GaussianWorld(shape=(4, 64, 64), mean=0.0, std=1.0)
    if "shift" in config["model"].get("schedule", {}):  # a flow's; no step is taken, so its times need not be the model's own
        world.times = lambda steps: torch.linspace(1, 0, steps + 1)  # type: ignore[method-assign]
        world.prediction = "velocity"
    world.grow(WHO, Spec("full", 1, 1.0, ()))
    return rows(
        terms(config) | costs(config, method_of(config, Policy(world, made(config["sampler"]), WHO, 1), Judge(Unasked(), world.meters)))
    )


class Unasked(Reward):
    name, differentiable, spatial, range = "unasked", True, True, (0.0, 1.0)
    unit = licence = ""
    backbones = datasets = ()

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        raise ValueError("this reward only stands where another would")


def planned(epochs: int, method: Method) -> int:
    """Network evaluations of a training."""
    return epochs * sum(method.plan().values()) - method.spared


def costs(config: dict[str, Any], method: Method) -> dict[str, str]:
    epochs, updates = config["epochs"], method.updates
    return savings(config, method) | {
        "epochs": f"{epochs}, each {updates.images} prompts and {len(updates) // updates.accumulate} updates",
        "reward queries": f"{epochs * method.queries:,}",
        "network evaluations": f"{planned(epochs, method):,} (guidance doubles them, a backward pass counts two more)",
    }


def savings(config: dict[str, Any], method: Method) -> dict[str, str]:
    """What training leaves out, each by the key that says so (docs/savings.md)."""
    lines, updates = {}, method.updates
    if window := config["sampler"].get("window"):
        lines["noise"] = f"in steps {window[0]} to {window[1] - 1} of 0 to {config['sampler']['steps'] - 1} alone (sampler.window)"
    if isinstance(updates, Updates) and updates.fraction is not None:
        lines["trained steps"] = f"{updates.each} of an image's {int(updates.trained.sum())}, drawn for each update (method.fraction)"
    sizes = [
        (config[group].get("pixels"), where) for group, where in (("model", "(model.pixels)"), ("eval", "in evaluation (eval.pixels)"))
    ]
    if given := [f"{pixels}x{pixels} {where}" for pixels, where in sizes if pixels]:
        lines["image size"] = ", ".join(given)
    return lines


def terms(config: dict[str, Any]) -> dict[str, str]:
    """What a model from elsewhere asks for before it can be used."""
    facts = config["model"]
    if not facts["download_gb"]:
        return {}
    frozen = facts["parameters_m"] * {"float32": 4, "bfloat16": 2}[facts["dtype"]] / 1e3
    needed = (
        f"{facts['memory_gb']:g} GB"
        if facts["memory_gb"] is not None
        else f"not measured; the denoiser's weights alone are {frozen:.1f} GB"
    )
    pinned = f"revision {facts['revision']}" if facts["revision"] else "revision not pinned"
    return {
        "model": f"{facts['path']} ({pinned}), {facts['download_gb']:g} GB; {facts['licence']}{', gated' if facts.get('gated') else ''}",
        "device memory": f"an update of DDPO with LoRA at micro-batch 1: {needed}",
    }


def rows(lines: dict[str, str]) -> str:
    return "\n".join(f"  {name:<20} {value}" for name, value in lines.items())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
