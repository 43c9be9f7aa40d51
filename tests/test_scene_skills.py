"""Skills: each judge sees its own attribute and no other, and together they are what the exact judge asks for."""

from dataclasses import replace

import pytest
import torch

from alignbench.compose import compose
from alignbench.experiment import Experiment
from alignbench.rewards.exact_judge import ExactJudge
from alignbench.rewards.scene_skills import SceneSkill, SceneSkills
from alignbench.rng import generator
from alignbench.worlds.scenes import ATTRIBUTES, Scene, draw

SCENE = Scene("cross", "red", "large", "at the left", "blue")
OTHER = {"shape": "circle", "colour": "green", "size": "small", "position": "at the top", "background": "white"}


def asked(*wrong: str) -> dict[str, float]:
    """What each judge says of SCENE's picture under a prompt in which the attributes `wrong` are others."""
    image = draw([SCENE], generator(0, "skill"))
    prompt = replace(SCENE, **{each: OTHER[each] for each in wrong}).caption
    judges = [ExactJudge(), SceneSkills(), *(SceneSkill(attribute=each) for each in ATTRIBUTES)]  # type: ignore[arg-type]
    return {judge.name: judge(image, [prompt]).item() for judge in judges}


@pytest.mark.parametrize("wrong", ATTRIBUTES)
def test_a_wrong_attribute_costs_its_own_skill_alone(wrong: str) -> None:
    assert asked(wrong) == {"exact_judge": 0, "scene_skills": pytest.approx(0.8)} | {f"skill_{each}": each != wrong for each in ATTRIBUTES}


def test_the_five_add_up() -> None:
    assert set(asked().values()) == {1.0}
    assert asked("shape", "size", "background")["scene_skills"] == pytest.approx(0.4)
    blank = torch.full((1, 3, 32, 32), 0.96)
    said = {each: SceneSkill(attribute=each)(blank, [replace(SCENE, background="white").caption]).item() for each in ATTRIBUTES}  # type: ignore[arg-type]
    assert said == {"shape": 0, "colour": 0, "size": 0, "position": 0, "background": 1}  # nothing is drawn


def test_the_preset_has_gold_first_and_a_column_each() -> None:
    built = Experiment.build(compose(["eval=skills"]).config)
    assert [judge.reward.name for judge in built.judges] == [
        "scene_judge",
        "exact_judge",
        "scene_skills",
        *(f"skill_{each}" for each in ATTRIBUTES),
    ]
    assert list(built.labels.values()) == ["trained"] + ["gold"] * 7
    assert built.judges[3].identity["settings"] == "attribute=shape, name=skill_shape"
