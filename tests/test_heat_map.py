"""A drawn map: what is read off the PNG, that credit stays where it was drawn, and PXPO from it through the front door."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from alignbench import compose as compose_module
from alignbench.__main__ import main
from alignbench.assets import Asset, here, named
from alignbench.compose import compose
from alignbench.config import MissingAsset
from alignbench.experiment import Experiment
from alignbench.labels import painted
from alignbench.report.record import read_metrics
from alignbench.rewards.brightness import Brightness
from alignbench.rewards.colour import Colour
from alignbench.rewards.exact_judge import ExactJudge
from alignbench.rewards.heat_map import HeatMap
from alignbench.rng import Draws, generator

SMALL = ["eval=quick", "eval.prompts=2", "eval.images=2", "eval.grid=2", "eval.every=0", "epochs=1", "method.images=16", "sampler.steps=3"]
PROMPTS = ["a small red circle at the left on a blue background", "a large white ring in the centre on a black background"]


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    """The left half white, the lower right quarter black, the rest clear."""
    picture = Image.new("RGBA", (32, 32))
    picture.paste((255, 255, 255, 255), (0, 0, 16, 32))
    picture.paste((0, 0, 0, 255), (16, 16, 32, 32))
    picture.save(tmp_path / "drawn.png")
    return tmp_path / "drawn.png"


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=generator(0, "images"))


def test_it_is_what_it_says(drawing: Path) -> None:
    reward, seen = HeatMap(path=str(drawing), of=Colour(width=0.35)), images().requires_grad_(True)
    map_, scores, whole = reward.map(seen, PROMPTS), reward(seen, PROMPTS), Colour(width=0.35).map(images(), PROMPTS)
    assert torch.equal(map_[:, :, :16], whole[:, :, :16])
    assert torch.equal(map_[:, 16:, 16:], -whole[:, 16:, 16:])
    assert not map_[:, :16, 16:].any()
    torch.testing.assert_close(scores, map_.flatten(1).mean(1))
    torch.testing.assert_close(torch.cat([reward(seen[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)]), scores)
    assert reward.range == (-1.0, 1.0)
    assert (reward.differentiable, reward.spatial, reward.grouped) == (True, True, False)
    assert reward.unit == "0 to 1, times -1 to 1"
    scores.sum().backward()
    assert seen.grad is not None
    assert seen.grad[:, :, :, :16].abs().sum() > 0
    assert not seen.grad[:, :, :16, 16:].any()  # nothing was drawn there
    bright = seen.detach().clone()
    bright[:, :, :, :16] += 0.1
    assert (
        HeatMap(path=str(drawing), of=Brightness())(bright, PROMPTS) > HeatMap(path=str(drawing), of=Brightness())(images(), PROMPTS)
    ).all()


@pytest.mark.parametrize(
    "mode, colour, value",
    [("L", 255, 1.0), ("L", 0, -1.0), ("L", 128, 0.0), ("1", 1, 1.0), ("RGB", (255, 255, 255), 1.0), ("RGBA", (255, 255, 255, 0), 0.0)]
    + [("RGBA", (0, 0, 0, 255), -1.0), ("P", 0, -1.0), ("L", 191, 63 / 127)],
)
def test_levels_are_read_in_every_kind_of_png(mode: str, colour: int, value: float, tmp_path: Path) -> None:
    Image.new(mode, (3, 2), colour).save(tmp_path / "level.png")
    assert torch.allclose(painted(tmp_path / "level.png"), torch.full((2, 3), value))


def test_a_drawing_is_averaged_to_smaller_images_and_repeated_for_larger_ones(tmp_path: Path) -> None:
    Image.frombytes("L", (4, 2), bytes([255, 255, 0, 128, 128, 255, 0, 0])).save(tmp_path / "drawn.png")
    reward = HeatMap(path=str(tmp_path / "drawn.png"), of=Brightness())
    seen = [reward.map(torch.ones(1, 3, *size), [""])[0] for size in ((1, 2), (2, 4), (4, 8))]
    torch.testing.assert_close(seen[0], torch.tensor([[0.75, -0.75]]))
    torch.testing.assert_close(seen[1], torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0, 1.0, -1.0, -1.0]]))
    torch.testing.assert_close(seen[2], seen[1].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_what_cannot_serve_is_named(drawing: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward\.of: reward exact_judge scores whole images only"):
        HeatMap(path=str(drawing), of=ExactJudge())
    with pytest.raises(MissingAsset, match=r"reward\.path=nowhere\.png: not there; draw a PNG"):
        HeatMap(path="nowhere.png", of=Brightness())
    (tmp_path / "text.png").write_bytes(b"paint")
    with pytest.raises(ValueError, match="not an image"):
        HeatMap(path=str(tmp_path / "text.png"), of=Brightness())
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="grey or clear everywhere"):
        HeatMap(path=str(tmp_path / "grey.png"), of=Brightness())


def test_the_drawing_and_the_reward_count_in_what_it_is(drawing: Path, tmp_path: Path) -> None:
    Image.new("L", (32, 32), 255).save(tmp_path / "other.png")
    one, other = (HeatMap(path=str(each), of=Colour(width=0.35)).identity() for each in (drawing, tmp_path / "other.png"))
    assert one["weights"] != other["weights"]
    assert one["settings"] == other["settings"] == f"of={json.dumps(Colour(width=0.35).identity(), sort_keys=True)}"


def test_the_file_s_content_is_part_of_a_run_s_identity(drawing: Path) -> None:
    words = ["method=pxpo", "reward=heat_map", f"reward.path={drawing}", "epochs=1"]
    before = compose(words).hash
    with Image.open(drawing) as picture:
        picture.putpixel((0, 0), (0, 0, 0, 255))
        picture.save(drawing)
    compose_module._digest.cache_clear()
    assert compose(words).hash != before


def test_doctor_looks_for_a_drawing_here_and_never_on_the_hub(drawing: Path) -> None:
    config = compose(["method=pxpo", "reward=heat_map", f"reward.path={drawing}", "epochs=1"]).config
    (found,) = [asset for asset in named(config) if asset.key == "reward.path"]
    assert here(found) == drawing
    assert Asset("reward.path", "drawn/left.png").hub is None
    assert Asset("reward.path", "owner/name").hub == ("owner/name", None)


def test_pxpo_credits_what_was_drawn_and_nothing_else(drawing: Path) -> None:
    words = ["method=pxpo", "reward=heat_map", f"reward.path={drawing}", *SMALL]
    experiment = Experiment.build(compose([*words, "method.images_per_prompt=8", "method.normalise=group_mean"]).config)
    prompts = [prompt for prompt in PROMPTS for _ in range(8)]
    for batch in experiment.method.collect(prompts, Draws(0, 0)):
        assert batch.advantage.shape[1:] == (8, 8)
        assert not batch.advantage[:, :4, 4:].any()  # nothing was drawn over these sites
        assert (batch.advantage.abs().amax(0) > 0)[:, :4].all()
        assert (batch.advantage.abs().amax(0) > 0)[4:, 4:].all()
    for batch in Experiment.build(compose([*words, "method.normalise=batch"]).config).method.collect(prompts, Draws(0, 0)):
        assert batch.advantage[:, :4, 4:].unique().numel() == 1  # constant: 0 less the mean of all sites


def test_pxpo_trains_from_a_drawing(drawing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method=pxpo", "reward=heat_map", f"reward.path={drawing}", *SMALL, f"output={tmp_path}"]
    assert main(words) == 0
    rows = [row for row in read_metrics(compose(words).folder) if row["split"] == "train"]
    assert -0.25 <= rows[-1]["reward"] <= 0.5  # black quarter, white half
    assert rows[-1]["reward_queries"] == 16
    assert main([*words[:2], "reward.path=nowhere.png", *words[3:]]) == 3
    assert "reward.path=nowhere.png" in capsys.readouterr().err
