"""The sandbox's captions, split so that validation and test hold (shape, colour) pairs that training never sees."""

from alignbench.worlds.scenes import all_scenes


class Scenes:
    """Prompts by split, in a fixed order."""

    def __init__(self) -> None:
        self.train, self.validation, self.test = (
            [scene.caption for scene in all_scenes(split)] for split in ("train", "validation", "test")
        )
