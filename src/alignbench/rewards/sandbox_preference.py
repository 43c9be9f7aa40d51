"""A learned preference reward for the sandbox, in the manner of PickScore: differentiable, and wrong where its annotators and data were."""

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alignbench.config import MissingAsset, located
from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.worlds.preference_net import PreferenceNet
from alignbench.worlds.scenes import PIXELS


class SandboxPreference(Reward):
    """The score of a small image-text network; how it was made, and how far it can be trusted, is on the card beside its weights."""

    name = "sandbox_preference"
    differentiable = True
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "standard deviations of the sandbox's samples"
    licence = "Apache-2.0"
    backbones = ("sandbox preference network",)
    datasets = ("the exact judge's reading",)  # of pairs, with noise and a liking for vivid colours

    def __init__(self, *, path: Text):
        """path: the weights' file, or package://file. Raises MissingAsset where it cannot be read."""
        super().__init__()
        self.net = PreferenceNet()
        try:
            self.net.load_state_dict(load_file(located(path)))
        except (OSError, SafetensorError, RuntimeError) as error:  # not there, damaged, another network's
            raise MissingAsset(
                f"reward.path={path}: no weights of this reward there; "
                "train them with `python -m alignbench.worlds.preference FOLDER` and name FOLDER/model.safetensors"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        if tuple(images.shape[-2:]) != (PIXELS, PIXELS):
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"reward=sandbox_preference scores {PIXELS}x{PIXELS} scenes, not {size} images; choose another reward")
        return self.net(images, prompts)
