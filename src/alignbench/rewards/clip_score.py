"""CLIP score: how near an image and its prompt are in CLIP's space, as tables of this field print it (100 x cosine). Differentiable."""

from torch import Tensor

from alignbench.config import MissingAsset, located
from alignbench.ranges import Positive, Text
from alignbench.rewards.base import Reward
from alignbench.rewards.clip import Clip, loaded, stands_on, tokenizer_at, weights_at
from alignbench.weights import first_line


class ClipScore(Reward):
    """`scale` times the cosine, below 0 too: a cut there would leave no gradient. The weights name the backbone."""

    name = "clip_score"
    differentiable = True
    spatial = False
    range = (-100.0, 100.0)
    unit = "100 x cosine"
    licence = "that of the weights; OpenAI's: MIT"
    backbones = ("CLIP ViT-L/14",)
    datasets = ("OpenAI's 400 M pairs",)
    frame = "shorter side to CLIP's size (PIL's bicubic), centre, CLIP's mean and std"
    size_gb = 1.7

    def __init__(self, *, path: Text, revision: str | None, scale: Positive):
        """path: Hub id (at `revision`) or folder of a transformers CLIP with its tokenizer. Raises MissingAsset where it cannot be had."""
        super().__init__()
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CLIPConfig

        try:
            config = CLIPConfig.from_pretrained(located(path), revision=revision)
            net = loaded(config, weights_at(path, revision))
            self.clip = Clip(net, tokenizer_at(path, revision, config.text_config.vocab_size))
        except (OSError, ValueError, StrictDataclassError) as error:
            raise MissingAsset(
                f"reward.path={path}: no CLIP there ({first_line(error)}); fetch config.json, model.safetensors (1.7 GB) and the tokenizer "
                "with `hf download openai/clip-vit-large-patch14` and put that id, or the files' folder, in reward.path"
            ) from error
        self.scale = scale
        self.stand_on(*stands_on(config.vision_config, path))
        self.unit = f"{scale:g} x cosine"  # type: ignore[misc]
        self.range = (-scale, scale)  # type: ignore[misc]
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.scale * self.clip(images, prompts)
