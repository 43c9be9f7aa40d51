"""The sandbox's captions, split so that validation and test hold (shape, colour) pairs that training never sees; its scenes."""

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from alignbench.worlds import scenes


class Scenes:
    """Prompts by split, in a fixed order."""

    def __init__(self) -> None:
        self.train, self.validation, self.test = (
            [scene.caption for scene in scenes.all_scenes(split)] for split in ("train", "validation", "test")
        )
        self.about: dict[str, dict[str, Any]] = {}


class ScenePictures:
    """Drawn scenes of the training split, for methods that learn from given images."""

    datasets = ()  # right by construction: no judge has said so

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, list[str]]:
        there = scenes.all_scenes("train")
        picked = [there[index] for index in torch.randint(len(there), (count,), generator=generator).tolist()]
        return scenes.draw(picked, generator), [scene.caption for scene in picked]


class ScenePairs:
    """Drawn scenes of the training split, each against the same scene with one of its five attributes wrong."""

    datasets = ()
    decided = 1.0

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
        there = scenes.all_scenes("train")
        picked = [there[index] for index in torch.randint(len(there), (count,), generator=generator).tolist()]
        wrong = [_with_a_mistake(scene, generator) for scene in picked]
        jitter = generator.clone_state()  # the two differ in the attribute alone
        return scenes.draw(picked, jitter), scenes.draw(wrong, generator), [scene.caption for scene in picked], torch.ones(count)


def _with_a_mistake(scene: scenes.Scene, generator: Generator) -> scenes.Scene:
    """An attribute, then another value of it; shape and background keep different colours."""
    attribute = scenes.ATTRIBUTES[int(torch.randint(len(scenes.ATTRIBUTES), (), generator=generator))]
    values = {
        "shape": scenes.SHAPES,
        "colour": tuple(scenes.COLOURS),
        "size": tuple(scenes.SIZES),
        "position": tuple(scenes.POSITIONS),
        "background": tuple(scenes.COLOURS),
    }[attribute]
    taken = {"colour": (scene.colour, scene.background), "background": (scene.colour, scene.background)}
    others = [value for value in values if value not in taken.get(attribute, (getattr(scene, attribute),))]
    return replace(scene, **{attribute: others[int(torch.randint(len(others), (), generator=generator))]})
