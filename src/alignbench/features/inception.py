"""FID's InceptionV3 (1706.08500), in torch-fidelity's conversion of the published TensorFlow graph: the 2048 numbers before its classes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignbench.config import MissingAsset, located
from alignbench.features.base import FeatureSpace
from alignbench.ranges import Text
from alignbench.weights import first_line, read

RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class Inception(FeatureSpace):
    """An image is rounded to 8 bits and stretched to 299x299 as that graph does it (TensorFlow 1's bilinear, no antialiasing)."""

    name = "inception"
    dimensions = 2048
    licence = "Apache-2.0"
    backbone = "InceptionV3, ImageNet classes"
    size_gb = 0.1

    def __init__(self, *, path: Text, revision: str | None):
        """path: the released file; revision: null, a release has none. Raises MissingAsset where it is not here or is another's."""
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        file = Path(located(path))
        try:
            if not file.is_file():
                raise OSError("no such file")
            read(file)  # the library's own reading would run code that a file holds: this raises ValueError for such a file
            self.net: Any = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
        except (OSError, ValueError, RuntimeError) as error:
            raise MissingAsset(
                f"eval.features: path={path}: no InceptionV3 there ({first_line(error)}); fetch {RELEASE} (96 MB) and name that file"
            ) from error

    def features(self, images: Tensor) -> Tensor:
        return self.net((images * 255).round().to(torch.uint8))[0]
