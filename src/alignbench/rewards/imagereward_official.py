"""The package image-reward itself, in an environment of its own: what the native reward=imagereward is compared with."""

from pathlib import Path

from alignbench.config import MissingAsset, located
from alignbench.ranges import Count, Positive, Text
from alignbench.rewards.imagereward import FETCH
from alignbench.rewards.worker import Worker
from alignbench.weights import first_line, found_at

SCRIPT = "package://rewards/official/imagereward.py"


class ImageRewardOfficial(Worker):
    """`ImageReward.load(path).score(prompt, image)` of an image's 8 bits."""

    name = "imagereward_official"
    differentiable = False
    spatial = False
    range = (-float("inf"), float("inf"))
    unit = "standard deviations of the training set's scores"
    licence = "Apache-2.0"
    backbones = ("BLIP ViT-L/16", "BERT")
    datasets = ("ImageRewardDB",)
    frame = "shorter side to 224 (PIL's bicubic), centre 224x224, CLIP's mean and std"
    size_gb = 1.8

    def __init__(
        self,
        *,
        path: Text,
        revision: str | None,
        tokenizer: Text,
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
        """path, revision, tokenizer: as of ImageReward; device: null for the package's own choice; the rest: as of Worker."""
        try:
            file = found_at(path, revision).resolve(strict=True)
        except OSError as error:
            raise MissingAsset(f"reward.path={path}: {first_line(error)}; {FETCH}") from error
        try:
            folder = Path(located(tokenizer))
            words = (folder / "vocab.txt" if folder.is_dir() else found_at(f"{tokenizer}:vocab.txt", None)).absolute()
            words.stat()
        except OSError as error:
            raise MissingAsset(
                f"reward.tokenizer={tokenizer}: BERT's uncased vocabulary is not there ({first_line(error)}); "
                "fetch it with `hf download bert-base-uncased vocab.txt` or name a local folder"
            ) from error
        self._tokenizer, self._device = tokenizer, device
        super().__init__(
            script=SCRIPT,
            requirements=requirements,
            python=python,
            settings={"path": str(file), "tokenizer": str(words.parent), "device": device},
            batch=batch,
            build_timeout=build_timeout,
            start_timeout=start_timeout,
            call_timeout=call_timeout,
            idle_timeout=idle_timeout,
            tries=tries,
            pause=pause,
        )

    def identity(self) -> dict[str, str]:
        """The weights by their hash, not by where this machine keeps them."""
        return {**super().identity(), "settings": f"device={self._device}, tokenizer={self._tokenizer}"}
