"""What the front door and a run share: config nodes that no class stands behind, the errors a run can end with, where conf/ is."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from alignbench.ranges import AtLeastTwo, Count, Decay, Fraction, Index, NonNegative, Positive, Share, Text

GROUPS = (
    "method",
    "model",
    "sampler",
    "reward",
    "dataset",
    "eval",
    "budget",
    "trainer",
    "tracker",
    "launcher",
    "recipe",
    "experiment",
    "hparams_search",
)
PACKAGED = "package://"

Track = Literal["multi_step", "few_step", "one_step"]
Adapter = Literal["lora", "full"]


class ConfigError(ValueError):
    """The user's input is wrong: one line that names the key, its file and the remedy. Exit code 2."""


class MissingAsset(Exception):
    """Weights, data, disk or network are not there: one line that says what to do. Exit code 3."""


class Stopped(BaseException):
    """A signal ended the run; what it had finished is saved. Exit code 128 + signum. No `except Exception` may take it for a failure."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}; the same command continues")
        self.signum = signum


@dataclass(frozen=True, kw_only=True)
class Lora:
    rank: Count
    alpha: Positive
    targets: Annotated[list[Text], MinLen(1)]  # names of the layers that get an adapter


@dataclass(frozen=True, kw_only=True)
class Judging:
    on_error: Literal["fail", "skip", "quarantine"]  # an image without a score ends the run, teaches nothing, or that and is kept aside
    patience: Positive | None  # seconds for an answer of any judge; workers and remote ones have timeouts of their own, which heal
    cache: bool  # scores of large and distant judges are remembered in <output>/.scores.sqlite
    overlap: bool  # images are scored while the next are being sampled


@dataclass(frozen=True, kw_only=True)
class TopLevel:
    seed: Index
    epochs: Index
    adapter: Literal["auto", "lora", "full"]
    guidance: Literal["auto"] | NonNegative
    lora: Lora
    judging: Judging
    output: Text  # root of the run folders


@dataclass(frozen=True, kw_only=True)
class Eval:
    prompts: AtLeastTwo  # test prompts
    images: AtLeastTwo  # images a prompt
    every: Index  # epochs between two validation evaluations; 0 = never
    validation_prompts: Count
    batch: Count  # images a forward, in rollouts too; changes results by rounding only
    grid: Count  # prompts in the picture grid
    noise: Index  # seed of the evaluation's noise: the same for every method and seed, so that differences are paired
    replicates: Annotated[int, Ge(100)]  # of the bootstrap
    judges: list[object]  # rewards that score beside the trained one, each with its `_target_`
    features: list[object]  # feature spaces in which sets of images are compared, each with its `_target_`
    lpips: object | None  # LPIPS within a prompt, with its `_target_`
    real: object | None  # pictures to compare with, a source of datasets.pictures with its `_target_`; null: with the reference alone
    reference_times: list[Fraction]  # at which the reference's denoising error is taken, shares of the schedule; none: it is not
    precision_neighbours: Count  # k of precision and recall
    coverage_neighbours: Count  # k of density and coverage
    peak: Literal["held_out", "trained"] | None  # whose validation scores choose the best checkpoint; null: none is chosen
    patience: Count | None  # validations without a new peak after which training stops; null: it goes on
    pixels: Count | None = None  # height and width of evaluated images; null: as in training


@dataclass(frozen=True, kw_only=True)
class Budget:
    reward_queries: Count | None
    network_evaluations: Count | None
    device_seconds: Positive | None


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    track: Track | Literal["any"]  # any: the model's first
    needs: Literal["score", "map", "gradient"] = "score"  # what it asks of a reward
    trains: bool = True


@dataclass(frozen=True, kw_only=True)
class TrackFacts:
    samplers: Annotated[list[Text], MinLen(1)]  # the first is what sampler=auto takes
    adapter: Adapter
    guidance: NonNegative


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    tracks: dict[Track, TrackFacts]
    licence: Text  # of the weights
    download_gb: NonNegative  # of the files that are loaded
    mirrors: list[Text]  # other places of the same weights
    parameters_m: NonNegative  # of the denoiser, in millions
    memory_gb: NonNegative | None  # of a device for an update of DDPO with LoRA at micro-batch 1; null: not measured


@dataclass(frozen=True, kw_only=True)
class TrainerFacts:
    threads: Index  # torch's threads; 0 = its own choice
    micro_batch: Count | Literal["auto"]  # rows a forward; auto: as many as fit, by probing
    memory_share: Share  # of the free memory that micro_batch=auto may take
    gradient_checkpointing: bool  # activations are made again in the backward pass: less memory, about a third more time
    compile: bool  # torch.compile of the denoiser and its copies
    channels_last: bool  # a UNet's weights in the layout that convolutions on tensor cores want
    offload_rollouts: bool  # trajectories are kept in the host's memory: the device's need does not grow with images and steps
    vae_tiling: bool  # decodes in tiles what is larger than the VAE's own size: those images change, so it counts in a run's identity


@dataclass(frozen=True, kw_only=True)
class TrainerLimits:
    """Lightning's arguments that are checked more closely than Lightning annotates them."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    devices: Count  # processes, each with a device: they share rollouts, scoring and updates
    strategy: Text
    num_nodes: Count
    precision: Literal["32-true", "bf16-mixed"]  # log-probabilities are fp32 in both
    gradient_clip_val: Positive | None


@dataclass(frozen=True, kw_only=True)
class OptimizerLimits:
    """torch.optim's arguments, likewise: their ranges are otherwise met only when training begins."""

    lr: Positive
    betas: tuple[Decay, Decay]
    eps: Positive
    weight_decay: NonNegative
    momentum: NonNegative


LIMITS = {"lightning.pytorch.trainer.": TrainerLimits, "torch.optim.": OptimizerLimits}
FACTS = {"method": MethodFacts, "model": ModelFacts, "trainer": TrainerFacts}  # keys beside `_target_` that no constructor takes
ECONOMIES = ("gradient_checkpointing", "compile", "channels_last", "vae_tiling")  # of TrainerFacts: what `Diffusion.economise` takes
HOST_ONLY = {  # keys that change where and how fast a run goes, never what it computes: no part of its identity
    "output": None,
    "tracker": None,
    "launcher": None,
    "judging": ("patience", "cache", "overlap"),
    "eval": ("batch",),
    "reward": ("batch", "pause", "tries", *(f"{each}_timeout" for each in ("build", "start", "connect", "call", "idle"))),
    "trainer": (
        *("accelerator", "devices", "num_nodes", "strategy", "threads", "micro_batch", "memory_share"),
        *("offload_rollouts", "enable_progress_bar", "logger"),
        *(each for each in ECONOMIES if each != "vae_tiling"),
    ),
}


def arguments(group: str, node: dict) -> dict:
    """A group's node as its constructor takes it: without the facts."""
    facts = {field.name for field in fields(FACTS[group])} if group in FACTS else set()
    return {key: value for key, value in node.items() if key not in facts}


def located(path: str) -> str:
    """A Hub id or local path as it is; `package://name` as the file or folder inside this package."""
    return str(Path(__file__).parent / path.removeprefix(PACKAGED)) if path.startswith(PACKAGED) else path


def parted(path: str) -> tuple[str, str | None]:
    """`place:file` as the two, with the place as `located` has it; the file is None where the path names none."""
    where = located(path)
    if ":" not in where or Path(where).exists():
        return where, None
    place, _, file = where.rpartition(":")
    return place, file


def conf_folder() -> Path:
    """conf/ inside the installed package, else at the root of the repository."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


def choices(group: str, conf: Path) -> dict[str, str]:
    """Each choice of a group with the line that says what it is: the first of its file, after Hydra's `# @package` where there is one."""
    lines = {}
    for file in sorted((conf / group).glob("*.yaml")):
        with file.open(encoding="utf-8") as text:
            lines[file.stem] = next((line.lstrip("# ").rstrip() for line in text if not line.startswith("# @")), "")
    return lines
