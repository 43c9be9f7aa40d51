"""LPIPS (1801.03924) through torchmetrics, on torchvision's AlexNet: how different two images look, patch by patch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from alignbench.config import MissingAsset, located
from alignbench.features.base import as_saved
from alignbench.identity import identity
from alignbench.ranges import Text
from alignbench.weights import first_line, read

RELEASE = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
CLASSES = "classifier."  # what the file holds beside the layers that LPIPS looks at


class Lpips(nn.Module):
    """A distance of pairs and no feature space: 0 for equal images. Its layers' weights, fitted to human answers, are torchmetrics'."""

    name = "lpips"
    licence = "BSD-3-Clause (torchvision's weights), BSD-2-Clause (LPIPS)"
    backbone = "AlexNet, ImageNet classes"
    size_gb = 0.25

    def __init__(self, *, path: Text, revision: str | None):
        """path: torchvision's AlexNet file; revision: null, a release has none. Raises MissingAsset where it is not here."""
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS  # the metric's class would fetch AlexNet by itself

        self.net = _LPIPS(pretrained=True, net="alex", pnet_rand=True, use_dropout=True, eval_mode=True)
        file = Path(located(path))
        try:
            if not file.is_file():
                raise OSError("no such file")
            weights = {key.removeprefix("features."): each for key, each in read(file).items() if not key.startswith(CLASSES)}
            slices = {key.split(".", 1)[1]: each for key, each in self.net.net.state_dict().items()}  # slice1.0.weight is features.0.weight
            if weights.keys() != slices.keys():
                raise ValueError(f"other layers: {', '.join(sorted(weights.keys() ^ slices.keys())[:3])}")
            self.net.net.load_state_dict({key: weights[key.split(".", 1)[1]] for key in self.net.net.state_dict()})
        except (OSError, ValueError, RuntimeError) as error:
            raise MissingAsset(
                f"eval.lpips: path={path}: no AlexNet there ({first_line(error)}); fetch {RELEASE} (244 MB) and name that file"
            ) from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Distances [B] of images [B,3,H,W] in [0,1], in fp32; no gradient."""
        with torch.no_grad(), torch.autocast(one.device.type, enabled=False):
            first, second = (as_saved(each.float().clamp(0, 1)) for each in (one, other))
            return self.net(first, second, normalize=True).flatten(1).squeeze(1)

    def train(self, mode: bool = True) -> "Lpips":
        """Always in eval mode: in training mode a dropout would wake."""
        return super().train(False)

    def identity(self) -> dict[str, str]:
        return identity(self, self.name)
