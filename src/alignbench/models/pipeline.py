"""What the families that live as diffusers pipelines share: loading, copies and adapters of the denoiser, decoding, export."""

import copy
import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from alignbench.config import PACKAGED, MissingAsset, located, parted
from alignbench.models import lora
from alignbench.models.base import Diffusion, Spec, VariancePreserving, Who
from alignbench.models.recompute import recomputed
from alignbench.ranges import Count

SCHEDULE = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "set_alpha_to_one", "shift")


def quiet() -> None:
    """No bars of no use for files that are here, and no page of advice for files that are not."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def file_at(place: str, file: str) -> Path:
    """A file of a local folder or of a Hub repository. Raises OSError or ValueError where it cannot be had."""
    if Path(place).is_dir():
        return Path(place, file)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place, file))


def tensors(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of safetensors or of torch.save; never its code."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise ValueError("not a state dict")
    return weights


class Pipeline(Diffusion):
    """A frozen pipeline; a `who` is a LoRA adapter on its denoiser or a full copy of it. Families say how prompts and outputs look."""

    family: ClassVar[str]  # the diffusers pipeline's class
    component: ClassVar[str]  # what its denoiser is called there
    without: ClassVar[dict[str, Any]] = {}  # components that are not loaded

    def __init__(
        self,
        *,
        path: str,
        revision: str | None,
        init: str | None,
        gated: bool,
        dtype: Literal["float32", "bfloat16"],
        schedule: dict[str, str | bool | int | float | None],
        pixels: Count | None = None,
    ):
        """path: Hub id, local folder or package://folder. init: weights that training starts from while the pipeline's own stay the score
        reference (a distilled student): a denoiser in diffusers' format (Hub id or folder), or `place:file` with all its weights or a LoRA
        on the pipeline's own; null: the pipeline's own. gated: its terms must be accepted on the Hub first. dtype: of the frozen networks;
        what is trained is float32. schedule: what log-probabilities depend on, as the scheduler's own config names it. pixels: height
        and width of an image; null: the pipeline's own. Raises MissingAsset where files cannot be had, ValueError where the schedule is
        another or the pixels are no whole number of the latent's.
        """
        super().__init__()
        import diffusers

        quiet()
        place = located(path)
        here = Path(place).exists() or path.startswith(("/", ".", "~", PACKAGED))
        try:
            found = diffusers.DiffusionPipeline.load_config(place, revision=revision)["_class_name"]
            if found == self.family:
                self.pipeline = [  # in a list: its text encoders are no part of this module, and stay where they are when it moves
                    getattr(diffusers, self.family).from_pretrained(
                        place, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True, **self.without
                    )
                ]
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].split(" (")[0]
            fetch = f"fetch it with `hf download {path}{f' --revision {revision}' if revision else ''}` or name a local folder"
            terms = "accept its terms on its page on the Hub, log in with `hf auth login`, then " if gated else ""
            remedy = "name a folder that a pipeline was saved to" if here else terms + fetch
            raise MissingAsset(f"model.path={path}: no pipeline there ({reason}); {remedy}") from error
        if found != self.family:
            raise ValueError(f"model.path={path}: a {found}, and this model is a {self.family}; choose the model that goes with it")
        config = self.pipeline[0].scheduler.config
        if wrong := [f"{key}={config.get(key)} there, {value} here" for key, value in schedule.items() if config.get(key) != value]:
            raise ValueError(f"model.schedule: {path} has another noise schedule ({'; '.join(wrong)}); log-probabilities depend on it")
        self.pipeline[0].set_progress_bar_config(disable=True)
        for part in self.pipeline[0].components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.denoiser: nn.Module = getattr(self.pipeline[0], self.component)
        self.vae = self.pipeline[0].vae.float()
        self.copies = nn.ModuleDict()
        self.adapters: dict[str, Who] = {}  # adapter -> the network that it sits in
        self._adapted: dict[nn.Module, list[Any]] = {}  # each network's layers with adapters, once they have been looked for
        if init is not None:
            self.start = "init"
            self.copies["init"] = self._loaded(init)
        self.shape = self.native()
        if pixels is not None:
            self.shape = self.latent(pixels, "model.pixels")

    def native(self) -> tuple[int, int, int]:
        """Shape of a latent of the pipeline's own image size."""
        made: Any = self.denoiser.config
        return made.in_channels, made.sample_size, made.sample_size

    @property
    def patch(self) -> int:
        """Side of the square of latent pixels that the denoiser takes as one: a UNet's has one."""
        return 1

    def latent(self, pixels: int, key: str) -> tuple[int, int, int]:
        scale = self.pipeline[0].vae_scale_factor
        if pixels % (scale * self.patch):
            raise ValueError(f"{key}={pixels}: this model's images are multiples of {scale * self.patch} pixels")
        return self.shape[0], pixels // scale, pixels // scale

    @abstractmethod
    def embedded(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Prompt embeddings [B,L,D]; the text encoders are on `device`."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The text encoders visit the device and leave it again: in between its memory is the denoiser's."""
        encoders = [part for name, part in self.pipeline[0].components.items() if name.startswith("text_encoder") and part is not None]
        for encoder in encoders:
            encoder.to(self.device)
        cond = self.embedded(prompts, self.device)
        for encoder in encoders:
            encoder.to("cpu")
        return cond

    @abstractmethod
    def call(self, network: nn.Module, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The raw output [N,C,h,w] of one forward pass of a denoiser."""

    def predict(self, x: Tensor, t: Tensor, cond: Tensor, who: Who) -> Tensor:
        network = self._network(self.adapters.get(who, who) if who else None)
        if network not in self._adapted:
            self._adapted[network] = lora.layers(network)
        lora.switch(self._adapted[network], who if who in self.adapters else None)
        dtype = next(network.parameters()).dtype
        return self.call(network, x.to(dtype), t, cond.to(dtype))

    def decode(self, x: Tensor) -> Tensor:
        """In the VAE's own precision, whatever the update's: an SDXL VAE overflows in 16 bits."""
        # all of its layers follow their input's layout; so its convolutions take 0.7 of the time on a CPU (not measured on a GPU)
        layout = torch.channels_last if x.device.type == "cpu" else torch.preserve_format
        with torch.autocast(x.device.type, enabled=False):
            latents = x.to(self.vae.dtype, memory_format=layout) / self.vae.config.scaling_factor + self._shift
            images = self.vae.decode(latents).sample
        return (images.float() / 2 + 0.5).clamp(0, 1).contiguous()

    def latents(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            mode = self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mode()
        return (mode.float() - self._shift) * self.vae.config.scaling_factor

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def _network(self, who: Who) -> nn.Module:
        if who is not None and who not in self.copies:
            raise KeyError(f"nothing named {who!r} was grown on this model")
        return self.denoiser if who is None else self.copies[who]

    def _loaded(self, init: str) -> nn.Module:
        """A frozen denoiser with the weights that `init` names."""
        kind: Any = type(self.denoiser)
        place, file = parted(init)
        try:
            if file is not None:
                network = self._filled(file_at(place, file))
            else:
                network = kind.from_pretrained(place, dtype=next(self.denoiser.parameters()).dtype, use_safetensors=True)
        except (OSError, ValueError, RuntimeError, LookupError, EOFError, UnpicklingError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(" (")[0]
            fetch = " ".join(filter(None, ["hf download", place, file]))
            raise MissingAsset(f"model.init={init}: no {kind.__name__} there ({reason}); fetch it whole with `{fetch}`") from error
        return network.requires_grad_(False).eval()

    def _filled(self, file: Path) -> Any:
        """A copy of the pipeline's denoiser with the weights of a file, or with the LoRA in it fused in. Raises ValueError where they are
        another network's.
        """
        network: Any = copy.deepcopy(self.denoiser)
        weights = tensors(file)
        if any("lora" in key for key in weights):
            self._fuse(network, file)
            return network
        wanted, there = ({key: each.shape for key, each in state.items()} for state in (network.state_dict(), weights))
        if odd := sorted(key for key in wanted | there if wanted.get(key) != there.get(key)):
            raise ValueError(f"{len(odd)} weights are missing, too many or of another shape, such as {odd[0]}")
        network.load_state_dict(weights)
        return network

    def _fuse(self, network: Any, file: Path) -> None:
        """As diffusers' own `load_lora_weights` and `fuse_lora`, which would do it to the pipeline's denoiser."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        kind: Any = type(self.pipeline[0])
        if not hasattr(kind, "lora_state_dict"):
            raise ValueError(f"diffusers reads no LoRA for {self.family}")
        layers, *alphas, metadata = kind.lora_state_dict(
            file.parent,
            weight_name=file.name,
            use_safetensors=file.suffix == ".safetensors",
            local_files_only=True,
            unet_config=network.config,  # for the block names of other trainers' files
            return_lora_metadata=True,
        )
        if foreign := [key for key in layers if not key.startswith(f"{self.component}.")]:
            raise ValueError(f"its LoRA changes more than the {self.component}: {foreign[0]}")
        network.load_lora_adapter(layers, prefix=self.component, network_alphas=alphas[0] if alphas else None, metadata=metadata)
        found = sum(isinstance(layer, BaseTunerLayer) for layer in network.modules())
        if 2 * found != (there := sum(key.endswith("weight") for key in layers)):  # what fits nowhere is only logged
            raise ValueError(f"its LoRA has {there} weights, and they fit {found} layers of two each")
        network.fuse_lora()
        network.unload_lora()

    def unlike(self, folder: Path) -> list[str]:
        """The parts of a saved pipeline, beside its denoiser, that are not this one's: by weights in this one's precision, by schedule."""
        found, precision = [], next(self.denoiser.parameters()).dtype
        for name, mine in self._frozen().items():
            files = [file for file in sorted((folder / name).glob("*.safetensors")) if len(file.suffixes) == 1]  # variants have two
            there = {key: each for file in files for key, each in tensors(file).items()}
            same = [key in mine and torch.equal(each.to(precision).to(mine[key].dtype), mine[key].cpu()) for key, each in there.items()]
            if not same or not all(same):
                found.append(name)
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        own = self.pipeline[0].scheduler.config
        return found + ["scheduler"] * any(config.get(key) != own.get(key) for key in SCHEDULE)

    def _frozen(self) -> dict[str, dict[str, Tensor]]:
        """The weights of all parts but the denoiser, by part."""
        parts = self.pipeline[0].components.items()
        return {name: part.state_dict() for name, part in parts if isinstance(part, nn.Module) and name != self.component}

    def weights(self, who: Who) -> dict[str, Tensor]:
        network = self._network(self.adapters.get(who, who) if who else None)
        own = {
            f"{self.component}.{name.replace('.base_layer.', '.')}": each  # peft's name for what an adapter, of whomever, sits on
            for name, each in network.state_dict().items()
            if "lora_" not in name or (who in self.adapters and f".{who}." in name)
        }
        rest = {} if who else self._frozen()
        return own | {f"{part}.{name}": each for part, state in rest.items() for name, each in state.items()}

    def grow(self, who: str, spec: Spec, start: Who = None) -> None:
        if spec.kind == "full":
            if start in self.adapters.values():
                raise ValueError("a full copy must grow before any adapter does: it would copy the adapters too")
            network = copy.deepcopy(self._network(start)).requires_grad_(True)
            self.copies[who] = network.float() if self.dtype == torch.float32 else network
        else:
            lora.grow(self._network(start), who, spec)
            self._adapted.clear()
            self.adapters[who] = start

    def trainable(self, who: str) -> dict[str, nn.Parameter]:
        if who in self.adapters:
            return lora.parameters(self._network(self.adapters[who]), who)
        return dict(self._network(who).named_parameters())

    @torch.no_grad()
    def moved(self, who: str) -> bool:
        if who in self.adapters:
            return any(bool(parameter.any()) for name, parameter in self.trainable(who).items() if "lora_B" in name)
        start = dict(self._network(self.start).named_parameters())
        return any(not torch.equal(parameter, start[name].to(parameter)) for name, parameter in self.trainable(who).items())

    @torch.no_grad()
    def rescale(self, who: str, scale: float) -> None:
        """A LoRA's update B A through B, which started as 0; a full copy between its start's weights and its own."""
        if who in self.adapters:
            for name, parameter in self.trainable(who).items():
                if "lora_B" in name:
                    parameter.mul_(scale)
            return
        start = dict(self._network(self.start).named_parameters())
        for name, parameter in self.trainable(who).items():
            parameter.lerp_(start[name].to(parameter), 1 - scale)

    def export(self, who: str, folder: Path, spec: Spec) -> None:
        """A diffusers LoRA in `folder` (`load_lora_weights`), or the full copy in a folder of the denoiser's name (`from_pretrained`)."""
        if spec.kind == "full":
            network: Any = self.copies[who].to(memory_format=torch.contiguous_format)  # safetensors writes no other
            network.save_pretrained(folder / self.component)
        else:
            self._export_lora(who, folder)

    def _export_lora(self, who: str, folder: Path) -> None:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        network: Any = self._network(self.adapters[who])
        # peft's own names: diffusers' conversion renames attention layers alone, and its reader then drops them beside any other
        layers = get_peft_model_state_dict(network, adapter_name=who)
        layers = {key: value.contiguous() for key, value in layers.items()}  # safetensors writes no other layout
        facts = network.peft_config[who].to_dict()  # without them a loader would forget lora_alpha
        facts["target_modules"] = sorted(facts["target_modules"])  # a set, whose order changes from process to process
        named = {f"{self.component}.{key}": fact for key, fact in facts.items()}
        metadata = {"lora_adapter_metadata": json.dumps(named, indent=2, sort_keys=True)}
        # diffusers' own writer adds a second entry, and safetensors writes entries in an order that changes from file to file
        type(self.pipeline[0]).save_lora_weights(
            folder,
            **{f"{self.component}_lora_layers": layers},
            save_function=lambda weights, path: save_file(weights, path, metadata),
        )

    def export_kohya(self, who: str, file: Path) -> None:
        """The LoRA `who` of a UNet as ComfyUI and A1111 read it."""
        from safetensors.torch import save_file

        save_file(lora.kohya(self._network(self.adapters[who]), who), file, {"format": "pt"})

    def export_pipeline(self, who: str, folder: Path) -> None:
        """The whole pipeline with `who` as its denoiser, a LoRA merged into it: `from_pretrained(folder)`."""
        network = lora.merged(self._network(self.adapters[who]), who) if who in self.adapters else self.copies[who]
        pipeline = self.pipeline[0]
        try:
            setattr(pipeline, self.component, network.to(memory_format=torch.contiguous_format))
            pipeline.save_pretrained(folder)
        finally:
            setattr(pipeline, self.component, self.denoiser)

    def economise(self, *, gradient_checkpointing: bool, compile: bool, channels_last: bool, vae_tiling: bool) -> None:
        """The denoiser, its copies, and the VAE, which a reward's gradient may flow through. Tiles: of images larger than the VAE's own."""
        networks: list[Any] = [self.denoiser, *self.copies.values()]
        if gradient_checkpointing:
            for network in (*networks, self.vae):
                network.enable_gradient_checkpointing(recomputed)
        if vae_tiling:
            self.vae.enable_tiling()
        for network in networks:
            if channels_last and self.component == "unet":  # a transformer has no convolutions to speak of
                network.to(memory_format=torch.channels_last)
            if compile:
                network.compile()

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device


class DDPMPipeline(Pipeline, VariancePreserving):
    """With a DDPM schedule, in the pipeline's own spacing."""

    def __init__(self, **pipeline: Any):
        super().__init__(**pipeline)
        from diffusers import DDIMScheduler

        self._scheduler = DDIMScheduler.from_config(self.pipeline[0].scheduler.config)
        self.prediction, self.train_times = self._scheduler.config.prediction_type, self._scheduler.config.num_train_timesteps
        self.register_buffer(
            "alpha_bar", torch.cat([self._scheduler.alphas_cumprod, self._scheduler.final_alpha_cumprod.reshape(1)]), persistent=False
        )

    def times(self, steps: int) -> Tensor:
        """The pipeline's own DDIM spacing. A step below time 0 lands on the schedule's final alpha (index -1)."""
        self._scheduler.set_timesteps(steps)
        here = self._scheduler.timesteps.cpu()
        return torch.cat([here, (here[-1:] - self.train_times // steps).clamp(min=-1)])
