"""CLIP's image embedding (2103.00020) through transformers, as CMMD (2401.09603) takes it: ViT-L/14@336, of length 1."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.config import located
from alignbench.features.base import FeatureSpace, squashed
from alignbench.hub import obtained
from alignbench.ranges import Text
from alignbench.weights import filled, found_at, read

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
TEXT = ("text_model.", "text_projection.", "logit_scale")  # what a file holds beside the half that sees
FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; OpenAI's repository began with the second alone


class Clip(FeatureSpace):
    """The whole image on CLIP's square, as CMMD's code squashes it, where CLIP's own judges crop the centre."""

    name = "clip"
    licence = "MIT"
    backbone = "CLIP ViT-L/14@336"
    size_gb = 1.7

    mean: Tensor
    std: Tensor

    def __init__(self, *, path: Text, revision: str | None):
        """path: Hub id or folder of a transformers CLIP. Raises MissingAsset where it cannot be had whole."""
        super().__init__()
        from transformers import CLIPConfig, CLIPVisionModelWithProjection

        def load() -> Any:
            both = CLIPConfig.from_pretrained(located(path), revision=revision)
            config = both.vision_config
            config.projection_dim = both.projection_dim
            file = _file(path, revision)
            found = {key: each for key, each in read(file).items() if not key.startswith(TEXT)}
            unused = ("vision_model.embeddings.position_ids",)  # in older files: 0, 1, 2, ...
            return filled(lambda: CLIPVisionModelWithProjection(config), found, file.name, str, unused)

        self.net = obtained(
            load,
            f"eval.features: path={path}: no CLIP there",
            "fetch it with `hf download openai/clip-vit-large-patch14-336` (1.7 GB) or name its local folder",
        )
        embeddings = self.net.vision_model.embeddings  # its positions are in no file and would stay on the meta device
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
        self.size, self.dimensions = self.net.config.image_size, self.net.config.projection_dim
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def features(self, images: Tensor) -> Tensor:
        return F.normalize(self.net(pixel_values=(squashed(images, self.size) - self.mean) / self.std).image_embeds, dim=-1)


def _file(path: str, revision: str | None) -> Path:
    folder = Path(located(path))
    if folder.is_dir():
        return next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])
    try:
        return found_at(f"{path}:{FILES[0]}", revision)
    except OSError:
        return found_at(f"{path}:{FILES[1]}", revision)
