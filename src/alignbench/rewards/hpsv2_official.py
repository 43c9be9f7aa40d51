"""The package hpsv2 itself, in an environment of its own: what the native reward=hpsv2 and hpsv2_1 are compared with."""

from typing import Literal

from alignbench.config import MissingAsset
from alignbench.ranges import Count, Positive, Text
from alignbench.rewards.hpsv2 import HPSv21
from alignbench.rewards.worker import Worker
from alignbench.weights import first_line, found_at

SCRIPT = "package://rewards/official/hpsv2.py"
PUBLISHED = {"v2.0": ("hpsv2_official", "HPS_v2_compressed.pt"), "v2.1": ("hpsv2_1_official", "HPS_v2.1_compressed.pt")}


class HPSv2Official(Worker):
    """`hpsv2.score(image, prompt)` of an image's 8 bits: a cosine; its benchmark's tables print 100 times as much."""

    name = "hpsv2_official"
    differentiable = False
    spatial = False
    range = (-1.0, 1.0)
    unit = "cosine"
    licence = "Apache-2.0"
    backbones = ("CLIP ViT-H/14",)
    datasets = ("HPD v2",)  # of version 2.0
    frame = "longer side to 224 (bicubic on tensors, antialiased), black bars, CLIP's mean and std"
    size_gb = 3.9

    def __init__(
        self,
        *,
        path: Text,
        revision: str | None,
        version: Literal["v2.0", "v2.1"],
        device: str | None,
        requirements: Text,
        python: str | None,
        batch: Count,
        build_timeout: Positive,
        start_timeout: Positive,
        call_timeout: Positive,
        idle_timeout: Positive,
        tries: Count,
        pause: Positive,
    ):
        """path, revision: the version's own file under its published name, as of HPSv2; version: as the package calls it; device: null for
        the package's own choice (on a GPU it scores in fp16); the rest: as of Worker.
        """
        self.name, published = PUBLISHED[version]  # type: ignore[misc]
        if version != "v2.0":
            self.stand_on(HPSv21.backbones, HPSv21.datasets)
        self._device = device
        try:
            file = found_at(path, revision).absolute()
            file.stat()
            if file.name != published:
                raise ValueError(f"{file.name} is not {published}, and only the name tells version {version} from others")
        except (OSError, ValueError) as error:
            raise MissingAsset(
                f"reward.path={path}: {first_line(error)}; fetch {published} (at most 3.9 GB) with "
                f"`hf download xswu/HPSv2 {published}` and put the file's path in reward.path, without renaming it"
            ) from error
        super().__init__(
            script=SCRIPT,
            requirements=requirements,
            python=python,
            settings={"name": self.name, "path": str(file), "device": device},
            batch=batch,
            build_timeout=build_timeout,
            start_timeout=start_timeout,
            call_timeout=call_timeout,
            idle_timeout=idle_timeout,
            tries=tries,
            pause=pause,
        )

    def identity(self) -> dict[str, str]:
        """The weights by their hash, not by where this machine keeps them; the device decides whether fp16 is used."""
        return {**super().identity(), "settings": f"device={self._device}"}
