"""ImageReward, on a small network with random weights in the published file's layout."""

import shutil
from pathlib import Path

import imagereward_file as published
import pytest
import torch
from pictures import drawn
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from alignbench.__main__ import main
from alignbench.config import MissingAsset
from alignbench.rewards.framing import CLIP_MEAN, CLIP_STD, framed
from alignbench.rewards.imagereward import PUBLISHED, ImageReward, Network, Sizes, published_name
from alignbench.rng import generator

SMALL = Sizes(published.VISION, published.TEXT, published.HEAD)
PROMPTS = ["a red circle on the left", "a small blue square", "the circles"]
IDS = [[2, 5, 6, 8, 10, 11, 12, 3], [2, 5, 13, 7, 9, 3], [2, 11, 8, 14, 3]]  # of PROMPTS in published.WORDS: the first is [CLS]


class Small(ImageReward):
    sizes = SMALL


def made(folder: Path, tokenizer: Path | None = None) -> ImageReward:
    return Small(path=str(folder / "ImageReward.pt"), revision=None, tokenizer=str(tokenizer or folder))


def images(height: int = 96, width: int = 128) -> Tensor:
    return drawn(3, 3, height, width)


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def padded() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([row + [0] * (35 - len(row)) for row in IDS])
    return ids, (ids > 0).long()


def final(raw: Tensor) -> Tensor:
    return (raw - 0.16717362830052426) / 1.0333394966054072


def test_it_is_what_it_says(image_reward: Path) -> None:
    reward, seen = made(image_reward), images().requires_grad_(True)
    scores = reward(seen, PROMPTS)
    assert scores.shape == (3,)
    assert scores.std() > 0.01
    alone = torch.cat([reward(seen[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, scores, rtol=1e-5, atol=1e-5)
    scores.sum().backward()
    assert seen.grad is not None
    assert (seen.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(each.requires_grad for each in reward.parameters())
    with pytest.raises(ValueError, match="spatial reward"):
        reward.map(images(), PROMPTS)


def test_the_gradient_is_that_of_the_score(image_reward: Path) -> None:
    reward = made(image_reward).double()
    seen = (0.2 + 0.6 * images(40, 56)[:1].double()).requires_grad_(True)
    step = torch.rand(seen.shape, generator=generator(0, "step"), dtype=torch.float64) - 0.5
    reward(seen, PROMPTS[:1]).sum().backward()
    with torch.no_grad():
        ends = [reward(seen + side * 1e-5 * step, PROMPTS[:1]).item() for side in (1, -1)]
    assert seen.grad is not None
    assert (seen.grad * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
def test_every_pixel_has_a_gradient_and_it_ends_at_the_crop(shade: float) -> None:
    picture = torch.full((1, 3, 300, 400), shade, requires_grad=True)
    framed(picture, 224).sum().backward()
    assert picture.grad is not None
    assert (picture.grad[..., 52:348] > 0).all()  # 300 of 400 columns are seen, and a little beyond for the filter
    assert not picture.grad[..., :45].any()
    assert not picture.grad[..., 355:].any()


def test_the_score_is_that_of_the_published_file_by_hand(image_reward: Path) -> None:
    """In plain torch, from the file's own keys and tokens written out."""
    ids, mask = padded()
    seen = images(224, 224)
    expected = final(published.raw_score(published.weights(), normalised(seen), ids, mask))
    torch.testing.assert_close(made(image_reward)(seen, PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_the_score_is_that_of_the_parts_put_together(image_reward: Path) -> None:
    """transformers' own two networks, filled key by key."""
    state = published.weights()
    vision = BlipVisionModel(BlipVisionConfig(**published.VISION)).eval()
    text = BlipTextModel(BlipTextConfig(**published.TEXT), add_pooling_layer=False).eval()
    eye = {
        "embeddings.class_embedding": state["blip.visual_encoder.cls_token"],
        "embeddings.position_embedding": state["blip.visual_encoder.pos_embed"],
    }
    for part in ("weight", "bias"):
        eye[f"embeddings.patch_embedding.{part}"] = state[f"blip.visual_encoder.patch_embed.proj.{part}"]
        eye[f"post_layernorm.{part}"] = state[f"blip.visual_encoder.norm.{part}"]
        for n in range(published.VISION["num_hidden_layers"]):
            ours, theirs = f"encoder.layers.{n}", f"blip.visual_encoder.blocks.{n}"
            eye[f"{ours}.layer_norm1.{part}"] = state[f"{theirs}.norm1.{part}"]
            eye[f"{ours}.layer_norm2.{part}"] = state[f"{theirs}.norm2.{part}"]
            eye[f"{ours}.self_attn.qkv.{part}"] = state[f"{theirs}.attn.qkv.{part}"]
            eye[f"{ours}.self_attn.projection.{part}"] = state[f"{theirs}.attn.proj.{part}"]
            eye[f"{ours}.mlp.fc1.{part}"] = state[f"{theirs}.mlp.fc1.{part}"]
            eye[f"{ours}.mlp.fc2.{part}"] = state[f"{theirs}.mlp.fc2.{part}"]
    vision.load_state_dict(eye)
    prefix = "blip.text_encoder."
    text.load_state_dict({key.removeprefix(prefix): each for key, each in state.items() if key.startswith(prefix) and "_ids" not in key})
    ids, mask = padded()
    seen = images(224, 224)
    with torch.no_grad():
        tokens = vision(pixel_values=normalised(seen)).last_hidden_state
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.long)
        read = text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens, encoder_attention_mask=everywhere, is_decoder=False
        ).last_hidden_state
    score = read[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = nn.functional.linear(score, state[f"mlp.layers.{number}.weight"], state[f"mlp.layers.{number}.bias"])
    torch.testing.assert_close(made(image_reward)(seen, PROMPTS), final(score[:, 0]), rtol=1e-5, atol=1e-6)


def test_every_weight_is_the_file_s(image_reward: Path) -> None:
    state, net = torch.load(image_reward / "ImageReward.pt", weights_only=True), made(image_reward).net.state_dict()
    assert {published_name(key) for key in net} == set(published.shapes(published.VISION, published.TEXT, published.HEAD))
    assert len(net) == len(state) - 5
    assert all(torch.equal(each, state[published_name(key)]) for key, each in net.items())


def test_the_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        net = Network(PUBLISHED)
    used = published.shapes(PUBLISHED.vision, PUBLISHED.text, PUBLISHED.head)
    more = published.unused(PUBLISHED.vision, PUBLISHED.text)
    assert {published_name(key): tuple(each.shape) for key, each in net.state_dict().items()} == used
    assert len(used | more) == 625
    ours = sum(each.numel() for each in net.parameters())
    projections = sum(torch.Size(shape).numel() for key, shape in more.items() if "_proj." in key)
    assert ours == 446_206_689
    assert (ours + projections) / 1e6 == pytest.approx(446.7, abs=0.05)  # as the official package counts, which never uses the projections
    assert (net.vision.encoder.layers[0].self_attn.num_heads, net.text.encoder.layer[0].attention.self.num_attention_heads) == (16, 12)
    assert (net.vision.post_layernorm.eps, net.text.embeddings.LayerNorm.eps) == (1e-6, 1e-12)


def test_padding_is_not_read_and_long_prompts_are_cut(image_reward: Path) -> None:
    reward, seen = made(image_reward), images()
    before = reward(seen, PROMPTS)
    with torch.no_grad():
        reward.net.text.embeddings.word_embeddings.weight[0] += 5
    torch.testing.assert_close(reward(seen, PROMPTS), before)
    long = ["a red circle " * 11] * 3  # 33 words between [CLS] and [SEP]
    torch.testing.assert_close(reward(seen, [each + "on the left" for each in long]), reward(seen, long))


def test_the_score_is_the_same_in_any_precision_of_training(image_reward: Path) -> None:
    reward, seen = made(image_reward), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = reward(seen, PROMPTS)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, reward(seen, PROMPTS))


def test_a_network_built_to_like_light_and_red_does(tmp_path: Path, image_reward: Path) -> None:
    """Brightness goes from the pixels through cross-attention to the score, a word through self-attention."""
    state = published.weights()
    for key, each in state.items():
        each.fill_(float("norm" in key.lower() and key.endswith("weight")))
    state["blip.visual_encoder.pos_embed"][..., 1] = 1
    state["blip.visual_encoder.patch_embed.proj.weight"][0] = 0.2 / (3 * 56**2)
    state["blip.text_encoder.embeddings.word_embeddings.weight"][:, 1] = 1
    state["blip.text_encoder.embeddings.word_embeddings.weight"][6, 2] = 1  # red
    for name, row in (("attention", 2), ("crossattention", 0)):
        layer = f"blip.text_encoder.encoder.layer.0.{name}"
        state[f"{layer}.self.value.weight"][row, row] = 1
        state[f"{layer}.output.dense.weight"][row, row] = 1
    state["mlp.layers.0.weight"][0, [0, 2]] = 1
    for number in (2, 4, 6, 7):
        state[f"mlp.layers.{number}.weight"][0, 0] = 1
    torch.save(state, tmp_path / "ImageReward.pt")
    reward = made(tmp_path, image_reward)
    grey = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 48, 48)
    assert (reward(grey, ["a circle"] * 6).diff() > 0.01).all()
    plain, red = reward(grey[:2], ["a circle", "a red circle"]) - reward(grey[:2], ["a circle"] * 2)
    assert plain == 0
    assert red > 0.01
    assert reward.prefer(grey[5:], grey[:1], ["a circle"]) > 0.5


def refused(path: object, tokenizer: object) -> str:
    with pytest.raises(MissingAsset) as caught:
        Small(path=str(path), revision=None, tokenizer=str(tokenizer))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("fault", ["missing", "truncated", "empty", "text", "list", "key", "shape", "more", "number"])
def test_a_file_that_is_not_the_published_one_is_refused_in_a_line(fault: str, image_reward: Path, tmp_path: Path) -> None:
    file, state = tmp_path / "ImageReward.pt", published.weights()
    whole = (image_reward / "ImageReward.pt").read_bytes()
    if fault in ("truncated", "empty", "text"):
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": pointer}[fault])
    elif fault != "missing":
        state |= {"shape": {"mlp.layers.7.bias": torch.zeros(2)}, "more": {"blip.queue": torch.zeros(2)}}.get(fault, {})
        if fault == "number":
            state["mlp.layers.7.bias"] = 3  # type: ignore[assignment]
        if fault == "key":
            del state["blip.visual_encoder.blocks.1.attn.qkv.bias"]
        torch.save(list(state) if fault == "list" else state, file)
    line = refused(file, image_reward)
    assert line.startswith(f"reward.path={file}: ")
    assert "fetch ImageReward.pt (about 1.8 GB) with `hf download THUDM/ImageReward ImageReward.pt` and put the file's path in" in line
    assert {
        "missing": "No such file",
        "truncated": "ImageReward.pt is truncated, or no torch file of weights alone",
        "empty": "ImageReward.pt is truncated, or no torch file of weights alone",
        "text": "ImageReward.pt is truncated, or no torch file of weights alone",
        "list": "missing, first blip.visual_encoder.cls_token",
        "key": "1 missing, first blip.visual_encoder.blocks.1.attn.qkv.bias",
        "shape": "1 of another shape, first mlp.layers.7.bias",
        "more": "1 unexpected, first blip.queue",
        "number": "1 of another shape, first mlp.layers.7.bias",
    }[fault] in line


def test_code_in_a_file_is_not_run(image_reward: Path, tmp_path: Path) -> None:
    torch.save({"mlp": refused}, tmp_path / "ImageReward.pt")
    assert "no torch file of weights alone" in refused(tmp_path / "ImageReward.pt", image_reward)


def test_without_a_network_the_hub_s_names_say_what_to_fetch(image_reward: Path, tmp_path: Path) -> None:
    line = refused("THUDM/ImageReward:ImageReward.pt", image_reward)
    for said in ("reward.path=THUDM/ImageReward:ImageReward.pt: ", "about 1.8 GB", "`hf download THUDM/ImageReward ImageReward.pt`"):
        assert said in line
    for tokenizer in ("bert-base-uncased", tmp_path):  # neither is here
        line = refused(image_reward / "ImageReward.pt", tokenizer)
        assert f"reward.tokenizer={tokenizer}: " in line
        assert "hf download bert-base-uncased" in line
    shutil.copy(image_reward / "vocab.txt", tmp_path)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("more\n")
    assert "18 words where the weights know 17" in refused(image_reward / "ImageReward.pt", tmp_path)


def test_a_run_trains_through_it_and_one_without_the_file_ends_with_3(
    image_reward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageReward, "sizes", SMALL)
    words = [
        "method=di_star",
        "model=sandbox_one_step",
        "reward=imagereward",
        "eval=quick",
        "eval.prompts=2",
        "eval.images=2",
        "eval.grid=2",
    ]
    words += ["eval.every=0", "epochs=1", "method.turns=1", "method.batch=4", f"reward.tokenizer={image_reward}", f"output={tmp_path}"]
    assert main([*words, f"reward.path={image_reward}/ImageReward.pt"]) == 0
    assert main(words) == 3  # the published file is not here
