"""How different a prompt's images are from each other: their mean pairwise distance, credited to each image by leaving it out."""

from torch import Tensor

from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.clip import stands_on
from alignbench.rewards.clip_features import ClipFeatures
from alignbench.rewards.groups import credited
from alignbench.worlds.scenes import Reading


class SceneDiversity(Reward):
    """Distance: root mean square over the twenty numbers that the exact judge reads off a scene. Prompts only say which images compare."""

    name = "scene_diversity"
    differentiable = False
    spatial = False
    range = (-2.0, 4.0)
    unit = "distance between readings"
    licence = "Apache-2.0"
    backbones = ("the exact judge's reading",)
    datasets = ()
    grouped = True

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        seen = Reading.of(images.detach()).features
        return credited(rms, seen / seen.shape[1] ** 0.5, prompts, self.name).to(images.device)


class SetDiversity(Reward):
    """Distance: 1 - cosine of CLIP's image features. Prompts only say which images compare."""

    name = "set_diversity"
    differentiable = False
    spatial = False
    range = (-2.0, 4.0)
    unit = "1 - cosine"
    licence = "that of the weights; OpenAI's CLIP: MIT"
    backbones = ("CLIP ViT-L/14",)
    datasets = ("OpenAI's 400 M pairs",)
    frame = "shorter side to CLIP's size (PIL's bicubic), centre, CLIP's mean and std"
    size_gb = 1.7
    grouped = True

    def __init__(self, *, path: Text, revision: str | None):
        """path: Hub id or folder of a transformers CLIP with its tokenizer. Raises MissingAsset where it cannot be had."""
        super().__init__()
        self.clip = ClipFeatures(path, revision)
        self.stand_on(*stands_on(self.clip.net.config.vision_config, path))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return credited(cosine, self.clip.images(images), prompts, self.name).to(images.device)


def rms(seen: Tensor) -> Tensor:
    """Mean distance between two different rows of [n,D]; 0 where there is one row."""
    return (seen[:, None] - seen).norm(dim=-1).sum() / max(len(seen) * (len(seen) - 1), 1)


def cosine(seen: Tensor) -> Tensor:
    """Mean of 1 - cosine between two different rows of unit vectors [n,D]; 0 where there is one row."""
    return (1 - seen @ seen.T).fill_diagonal_(0).sum() / max(len(seen) * (len(seen) - 1), 1)
