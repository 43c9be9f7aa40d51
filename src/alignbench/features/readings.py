"""The sandbox's own feature space: the twenty numbers that the exact judge measures on a scene, in closed form; nothing to fetch."""

from torch import Tensor

from alignbench.features.base import FeatureSpace
from alignbench.worlds.scenes import PIXELS, Reading


class Readings(FeatureSpace):
    """Colours of shape and background, place, and overlap with each shape and size, each of order 1. Scenes of 32x32 pixels only."""

    name = "readings"
    dimensions = 20
    licence = "Apache-2.0"

    def features(self, images: Tensor) -> Tensor:
        """Raises ValueError for images of another size."""
        if (size := tuple(images.shape[-2:])) != (PIXELS, PIXELS):
            raise ValueError(
                f"eval.features: readings measures {PIXELS}x{PIXELS} scenes, not {'x'.join(map(str, size))} images; "
                "name another space there, or choose eval=plain"
            )
        return Reading.of(images).features.to(images.device)
