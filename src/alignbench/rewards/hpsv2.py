"""HPSv2 and HPSv2.1 (2306.09341) on open_clip's ViT-H/14: which image people prefer for a prompt. Differentiable."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alignbench.config import MissingAsset
from alignbench.ranges import Text
from alignbench.rewards.base import Reward
from alignbench.rewards.framing import clip_normalised, letterboxed
from alignbench.weights import filled, first_line, found_at, read

VIT_H_14: dict[str, Any] = {  # arguments of open_clip's CLIP, from its own ViT-H-14.json
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}


def loaded(sizes: dict[str, Any], file: Path) -> Any:
    """open_clip's CLIP with a published file's weights, in fp32. Raises OSError or ValueError as `read` and `filled` do."""
    from open_clip.model import CLIP

    held = read(file)
    network = filled(lambda: CLIP(**sizes), held.get("state_dict") if isinstance(held, dict) else None, file.name, str, ())
    length = sizes["text_cfg"]["context_length"]
    network.attn_mask = torch.full((length, length), -torch.inf).triu(1)  # causal; in no file: still on meta
    return network


class HPSv2(Reward):
    """The cosine of image and prompt; the tables of its benchmark print 100 times as much."""

    name = "hpsv2"
    differentiable = True
    spatial = False
    range = (-1.0, 1.0)
    unit = "cosine"
    licence = "Apache-2.0"
    backbones = ("CLIP ViT-H/14",)
    datasets: ClassVar[tuple[str, ...]] = ("HPD v2",)
    frame = "longer side to 224 (bicubic on tensors), black bars, CLIP's mean and std"
    size_gb = 3.9
    published: ClassVar[str] = "HPS_v2_compressed.pt"  # the two versions' files differ in nothing that can be checked but their names
    sizes: ClassVar[dict[str, Any]] = VIT_H_14

    def __init__(self, *, path: Text, revision: str | None, antialias: bool):
        """path: the version's own file under its published name, local or `owner/name:file` on the Hub at `revision`; antialias: as
        torchvision's, whose filter then grows where an image shrinks, and is Keys' cubic of -1/2 instead of -3/4. Raises MissingAsset
        where the file cannot be had, or is not what was published.
        """
        super().__init__()
        from open_clip import tokenize

        try:
            file = found_at(path, revision)
            if file.name != self.published:
                raise ValueError(f"{file.name} is not {self.published}, and only the name tells {self.name} from other versions")
            self.net = loaded(self.sizes, file)
        except (OSError, ValueError) as error:
            raise MissingAsset(
                f"reward.path={path}: {first_line(error)}; fetch {self.published} (at most 3.9 GB) with "
                f"`hf download xswu/HPSv2 {self.published}` and put the file's path in reward.path, without renaming it"
            ) from error
        self.tokenize, self.antialias = tokenize, antialias
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        like = self.net.logit_scale
        with torch.autocast(like.device.type, enabled=False):  # a score does not depend on the precision of training
            pixels = clip_normalised(letterboxed(images.to(like), self.sizes["vision_cfg"]["image_size"], self.antialias))
            words = self.tokenize(prompts, self.net.context_length).to(like.device)
            return F.cosine_similarity(self.net.encode_image(pixels), self.net.encode_text(words))

    def prefer(self, a: Tensor, b: Tensor, prompts: list[str]) -> Tensor:
        """P(a is preferred to b) [B]: a softmax over the two, of exp(logit_scale) times the cosines, as in training."""
        return torch.sigmoid(self.net.logit_scale.exp() * (self(a, prompts) - self(b, prompts)))


class HPSv21(HPSv2):
    """The same network with later weights: its scores are on another scale, and never belong in one column with version 2's."""

    name = "hpsv2_1"
    differentiable = True  # facts are read from a class's own body, before anything is imported
    spatial = False
    licence = "Apache-2.0"
    backbones = ("CLIP ViT-H/14",)
    datasets = ("HPD v2", "unknown")  # and more comparisons, not published
    size_gb = 3.9
    published = "HPS_v2.1_compressed.pt"
