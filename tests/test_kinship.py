"""Held out is decided by facts: what a judge stands on, here, in a mix, and over the wire."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import yaml_of
from PIL import Image
from torch import Tensor

from alignbench.config import choices, conf_folder
from alignbench.evaluation.evaluate import described, label_of
from alignbench.meters import Meters
from alignbench.rewards.base import UNKNOWN, Reward, kinship
from alignbench.rewards.brightness import Brightness, LightLeft
from alignbench.rewards.clip import stands_on
from alignbench.rewards.colour import Colour
from alignbench.rewards.exact_judge import ExactJudge
from alignbench.rewards.heat_map import HeatMap
from alignbench.rewards.judge import Judge
from alignbench.rewards.mix import Mix
from alignbench.rewards.parity import SceneParity
from alignbench.rewards.scene_judge import SceneJudge
from alignbench.rewards.scene_panel import ScenePanel, SmoothPanel
from alignbench.rewards.wire import said_kin, take_kin
from alignbench.signatures import fact_of

PAGE = Path(__file__).parents[1] / "docs" / "rewards" / "README.md"
FIXED = [each for each in choices("reward", conf_folder()) if each not in ("mix", "mix_drawn", "heat_map", "worker", "remote")]


def fact(choice: str, name: str) -> Any:
    return fact_of(yaml_of("reward", choice)["_target_"], name)


def judge(choice: str) -> type[Reward]:
    """The class behind a choice: its facts are those of its published weights."""
    module, _, name = yaml_of("reward", choice)["_target_"].rpartition(".")
    found = getattr(import_module(module), name)
    return type(name, (found,), {"name": choice})


class Says(Reward):
    name, differentiable, spatial, range, unit, licence = "says", False, False, (0.0, 1.0), "", ""

    def __init__(self, name: str, backbones: tuple[str, ...], datasets: tuple[str, ...]):
        super().__init__()
        self.name = name  # type: ignore[misc]
        self.stand_on(backbones, datasets)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.zeros(len(images))


def test_every_reward_says_on_what_it_stands() -> None:
    for choice in FIXED:
        assert isinstance(fact(choice, "backbones"), tuple), choice
        assert isinstance(fact(choice, "datasets"), tuple), choice
        assert (fact(choice, "backbones"), fact(choice, "datasets")) == (judge(choice).backbones, judge(choice).datasets)
        assert UNKNOWN not in fact(choice, "backbones")


@pytest.mark.parametrize(
    "trained, other, label, shared",
    [
        ("hpsv2", "pickscore", "related", "CLIP ViT-H/14"),
        ("hpsv2", "hpsv2_1", "related", "CLIP ViT-H/14, HPD v2"),
        ("hpsv2_1", "pickscore", "related", "CLIP ViT-H/14"),  # what is not known of it does not matter then
        ("clip_score", "aesthetic", "related", "CLIP ViT-L/14"),
        ("clip_score", "parity", "related", "CLIP ViT-L/14, OpenAI's 400 M pairs"),
        ("clip_score", "vqa_score", "related", "CLIP ViT-L/14"),  # its larger twin grew from it
        ("vlm", "vqa_score", "related", "CLIP ViT-L/14, CLIP ViT-L/14@336, LLaVA 1.5's instructions, Vicuna 7B"),
        ("imagereward", "imagereward_official", "related", "BERT, BLIP ViT-L/16, ImageRewardDB"),
        ("jpeg_compressibility", "jpeg_incompressibility", "related", "JPEG of quality 95"),  # one is minus the other
        ("sandbox_preference", "scene_judge", "related", "the exact judge's reading"),  # which labelled its data
        ("scene_judge", "exact_judge", "related", "the exact judge's reading"),  # but gold, which is a label of its own
        ("hpsv2_1", "imagereward", "unknown", "hpsv2_1"),
        ("imagereward", "hpsv2_1", "unknown", "hpsv2_1"),
        ("hpsv2", "imagereward", "held out", ""),
        ("hpsv2", "clip_score", "held out", ""),
        ("pickscore", "aesthetic", "held out", ""),
        ("imagereward", "clip_score", "held out", ""),
        ("scene_judge", "colour", "held out", ""),
        ("sandbox_preference", "colour", "held out", ""),
    ],
)
def test_who_is_related(trained: str, other: str, label: str, shared: str) -> None:
    for first, second in ((trained, other), (other, trained)):
        found, why = kinship(judge(first), judge(second))
        assert found == label
        assert (
            why
            == {
                "held out": "",
                "related": f"{first} and {second} both stand on {shared}",
                "unknown": f"{shared}: what it stands on is not all known",
            }[label]
        )


def test_a_judge_is_its_own_kin_and_what_is_silent_is_unknown() -> None:
    assert kinship(Colour(width=0.35), Colour(width=0.9))[0] == "related"
    silent = Says("silent", (UNKNOWN,), ())
    assert kinship(silent, Brightness()) == kinship(Brightness(), silent) == ("unknown", "silent: what it stands on is not all known")
    both = kinship(silent, Says("mute", (), (UNKNOWN,)))
    assert both == ("unknown", "silent and mute: what it stands on is not all known")
    assert kinship(silent, silent)[0] == "related"
    half = Says("half", ("CLIP ViT-H/14", UNKNOWN), ())
    assert kinship(half, judge("pickscore"))[0] == "related"


def test_a_mix_and_a_drawn_map_have_all_kin_of_their_judges(tmp_path: Path) -> None:
    numbers = {"weights": [1.0, 1.0], "means": [0.0, 0.0], "stds": [None, None]}
    network = Says("net", ("CLIP ViT-H/14",), ("HPD v2",))
    mix = Mix(judges=[network, Colour(width=0.35)], **numbers)
    assert (mix.members, mix.backbones, mix.datasets) == (("net", "colour"), network.backbones, network.datasets)
    assert kinship(mix, Colour(width=0.35)) == ("related", "mix and colour both stand on colour")
    assert kinship(mix, judge("pickscore")) == ("related", "mix and pickscore both stand on CLIP ViT-H/14")
    assert kinship(mix, Brightness())[0] == "held out"
    Image.new("L", (4, 4), 255).save(tmp_path / "drawn.png")
    drawn = HeatMap(path=str(tmp_path / "drawn.png"), of=SceneJudge())
    nested = Mix(judges=[drawn, mix], **numbers)
    assert nested.members == ("heat_map", "scene_judge", "mix", "net", "colour")
    assert {kinship(nested, each)[0] for each in (SceneJudge(), ExactJudge(), Colour(width=0.35), judge("hpsv2_1"))} == {"related"}
    assert kinship(nested, LightLeft())[0] == "held out"
    assert kinship(Mix(judges=[network, Says("silent", (UNKNOWN,), ())], **numbers), Brightness())[0] == "unknown"


def test_kin_travels_over_the_wire() -> None:
    numbers = {"weights": [1.0, 1.0], "means": [0.0, 0.0], "stds": [None, None]}
    for reward in (
        Colour(width=0.35),
        Says("half", ("A", "B c"), ("D", UNKNOWN)),
        Mix(judges=[Colour(width=0.35), SceneJudge()], **numbers),
    ):
        there = Says("there", (), ())
        take_kin(there, said_kin(reward))
        assert (there.backbones, there.datasets, there.members) == (reward.backbones, reward.datasets, reward.members)
    there = Says("there", (), ())
    take_kin(there, {"name": "there", "version": "1"})
    assert (there.backbones, there.datasets, there.members) == ((UNKNOWN,), (UNKNOWN,), ())
    take_kin(there, {"backbones": " CLIP ViT-H/14 ;BERT; ", "datasets": ""})
    assert (there.backbones, there.datasets) == (("CLIP ViT-H/14", "BERT"), ())


def test_of_clip_the_sizes_tell_the_backbone_and_the_hub_id_the_data() -> None:
    from transformers import CLIPVisionConfig

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    assert stands_on(CLIPVisionConfig(**large), "openai/clip-vit-large-patch14") == (
        judge("clip_score").backbones,
        judge("clip_score").datasets,
    )
    bigger = CLIPVisionConfig(**large, image_size=336)
    assert stands_on(bigger, "openai/clip-vit-large-patch14-336")[0] == ("CLIP ViT-L/14@336", "CLIP ViT-L/14")
    assert stands_on(bigger, "folder")[1] == stands_on(bigger, "laion/openai/x")[1] == (UNKNOWN,)


def test_the_label_in_tables_follows() -> None:
    exact, scene, colour, net = ExactJudge(), SceneJudge(), Colour(width=0.35), Says("net", (UNKNOWN,), ())
    assert label_of(scene, scene, ()) == ("trained", "")
    assert label_of(exact, exact, ()) == ("trained", "")  # trained on, it is no gold standard
    assert label_of(exact, scene, ()) == ("gold", "")
    assert label_of(colour, scene, ()) == ("held out", "")
    parity, why = SceneParity(attribute="shape"), "scene_judge and scene_parity both stand on the exact judge's reading"
    assert label_of(parity, scene, ()) == ("related", why)
    assert label_of(net, scene, ())[0] == "unknown"
    assert {label_of(each, None, ())[0] for each in (scene, colour, net)} == {"held out"}  # nothing was trained on
    assert label_of(colour, None, ("colour", "unknown")) == ("related", "the weights learned from colour")  # pairs that it had scored
    assert label_of(scene, None, ("colour", "unknown"))[0] == "unknown"
    assert label_of(exact, None, ("unknown",)) == ("gold", "")
    assert label_of(scene, None, ("colour",)) == ("held out", "")
    judges = [Judge(each, Meters()) for each in (scene, exact, parity)]
    about = described(judges, scene, (), {"kl": {"label": "divergence"}})
    assert [row["label"] for row in about] == ["trained", "gold", "related", "divergence"]
    assert about[2]["note"].endswith(f"Not held out: {why}.")


def test_raters_are_people_of_their_own() -> None:
    first, second, smooth = ScenePanel(noise=0.5, rater=0), ScenePanel(noise=0.5, rater=1), SmoothPanel(noise=0.5, rater=0)
    assert kinship(first, second)[0] == kinship(SceneJudge(), first)[0] == "held out"
    assert kinship(first, smooth) == ("related", "panel_0 and smooth_panel_0 both stand on rater 0")  # the same errors


def test_the_page_s_table_is_true() -> None:
    """docs/rewards/README.md: what several rewards stand on, from the classes' own facts; and every pair in a row is related."""
    held_out = PAGE.read_text(encoding="utf-8").split("## Held out")[1].split("\n## ")[0]
    rows = {name: re.findall(r"`(\w+)`", cell) for name, cell in re.findall(r"^\| ([^|`]+) \| (`[^|]+) \|$", held_out, re.M)}
    standing: dict[str, list[str]] = {}
    for choice in FIXED:
        for name in dict.fromkeys([*fact(choice, "backbones"), *fact(choice, "datasets")]):
            standing.setdefault(name, []).append(choice)
    assert rows == {name: on for name, on in standing.items() if len(on) > 1 and name != UNKNOWN}
    pairs = {frozenset((one, two)) for row in rows.values() for one in row for two in row if one != two}
    for one in FIXED:
        for two in FIXED:
            if one != two:
                assert (kinship(judge(one), judge(two))[0] == "related") == (frozenset((one, two)) in pairs), (one, two)
