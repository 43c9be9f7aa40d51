"""Stable Diffusion XL against diffusers' own pipeline: conditions, images, copies, weights from files, the distilled models' samplers."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_sdxl
import torch
from conftest import FULL, LORA
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from alignbench.compose import _digest, compose
from alignbench.config import MissingAsset
from alignbench.models.base import Spec
from alignbench.models.stable_diffusion_xl import StableDiffusionXL
from alignbench.policy import Policy
from alignbench.rng import Draws, generator
from alignbench.samplers.ddim import DDIM
from alignbench.samplers.few_step import FewStep
from alignbench.samplers.one_step import OneStep

PROMPTS = ["a small red circle at the left on a blue background", "a large white ring in the centre on a green background"]
SETTING = {"revision": None, "init": None, "gated": False, "dtype": "float32", "embedded_guidance": None}
TRAILING = [999, 749, 499, 249]


def a_model(folder: Path, spec: Spec | None = None, perturb: bool = False, **setting: Any) -> StableDiffusionXL:
    model = StableDiffusionXL(**{**SETTING, "path": str(folder), "schedule": tiny_sdxl.SCHEDULE, **setting})
    if spec:
        model.grow("policy", spec, model.start)
        if perturb:  # as if it had been trained
            noise = generator(0, "perturb")
            for parameter in model.trainable("policy").values():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    return model


def pipeline(folder: Path, **parts: Any) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(model: StableDiffusionXL) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, *model.shape, generator=generator(0, "x")), torch.tensor([11, 701]), model.encode(PROMPTS)


def seen(
    pipe: StableDiffusionXLPipeline, x: torch.Tensor, guidance: float, **call: Any
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What the pipeline's scheduler was given at each step of its own denoising: guided noise, time, latents."""
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda eps, t, latents, **rest: (steps.append((eps, t, latents)), step(eps, t, latents, **rest))[1]
    pipe(PROMPTS, guidance_scale=guidance, latents=x, output_type="latent", **{"num_inference_steps": 3, **call})
    return steps


def zeros(folder: Path, wanted: bool, to: Path) -> Path:
    """The pipeline with `force_zeros_for_empty_prompt` as wanted."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        (to / name).symlink_to(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": wanted}))
    return to


@pytest.mark.step("guided eps")
@pytest.mark.parametrize("forced", [True, False], ids=["zeros", "embedded"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_guided_noise_is_the_pipelines_own(sdxl: Path, tmp_path: Path, forced: bool, guidance: float) -> None:
    folder = zeros(sdxl, forced, tmp_path)
    model, pipe = a_model(folder), pipeline(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert bool(model.encode([""]).abs().max() == 0) is forced
    cond = model.encode(PROMPTS)
    with torch.no_grad():
        for eps, t, latents in seen(pipe, inputs(model)[0], guidance):
            ours = model.eps(latents, t.expand(2), cond, None, guidance=guidance)
            torch.testing.assert_close(ours, eps, rtol=0, atol=1e-5)


def test_the_condition_holds_the_pooled_embedding_in_more_rows(sdxl: Path) -> None:
    model, pipe = a_model(sdxl), pipeline(sdxl)
    tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    cond = model.encode(PROMPTS)
    assert cond.shape == (2, 16 + 2, 64)  # 80 in rows of 64
    assert torch.equal(cond[:, :16], tokens)
    assert torch.equal(cond[:, 16:].flatten(1), torch.nn.functional.pad(pooled, (0, 48)))


@pytest.mark.step("rollout")
@pytest.mark.parametrize("pixels", [32, 16])
def test_a_deterministic_rollout_is_the_pipelines_own_image(sdxl: Path, pixels: int) -> None:
    """The UNet is told another size, too, which an evaluation's size changes for its own time."""
    model, pipe = a_model(sdxl, pixels=pixels), pipeline(sdxl)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    policy = Policy(model, DDIM(steps=6, eta=0.0, guidance=5.0, deterministic=0), None, chunk=8)
    x = torch.randn(2, *model.shape, generator=generator(0, "x"))
    ours = policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))
    theirs = pipe(PROMPTS, num_inference_steps=6, guidance_scale=5.0, latents=x, output_type="pt", height=pixels, width=pixels).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert ours.std() > 0.01
    with model.sized(8):
        assert model.sizes == [8, 8, 0, 0, 8, 8]
    assert model.sizes == [pixels, pixels, 0, 0, pixels, pixels]


@pytest.mark.step("decode")
def test_decoding_is_differentiable(sdxl: Path) -> None:
    model = a_model(sdxl)
    x = torch.randn(1, *model.shape, generator=generator(0, "x")).requires_grad_(True)
    model.decode(x).mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.step("copies")
@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_the_reference_is_the_untouched_base_bit_for_bit(sdxl: Path, spec: Spec) -> None:
    untouched = a_model(sdxl)
    x, t, cond = inputs(untouched)
    expected = untouched.eps(x, t, cond, None, guidance=3.0)
    model = a_model(sdxl, spec)
    assert torch.equal(model.eps(x, t, cond, "policy", guidance=3.0), expected)
    for parameter in model.trainable("policy").values():
        parameter.data += 0.05
    assert not torch.allclose(model.eps(x, t, cond, "policy", guidance=3.0), expected, atol=1e-3)
    assert torch.equal(model.eps(x, t, cond, None, guidance=3.0), expected)


@pytest.mark.step("export")
def test_an_exported_lora_reproduces_the_noise_in_plain_diffusers(sdxl: Path, tmp_path: Path) -> None:
    model = a_model(sdxl, LORA, perturb=True)
    model.export("policy", tmp_path, LORA)
    pipe, cond = pipeline(sdxl), model.encode(PROMPTS)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(tmp_path)
    with torch.no_grad():
        for eps, t, latents in seen(pipe, inputs(model)[0], 5.0):
            torch.testing.assert_close(model.eps(latents, t.expand(2), cond, "policy", 5.0), eps, rtol=0, atol=1e-5)
            assert (model.eps(latents, t.expand(2), cond, None, 5.0) - eps).abs().max() > 0.01


def other_unet(folder: Path, **config: Any) -> UNet2DConditionModel:
    """Of the pipeline's own shape, with other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet2DConditionModel.from_config({**UNet2DConditionModel.load_config(folder / "unet"), **config}).eval()


def noise_of(unet: UNet2DConditionModel, folder: Path) -> torch.Tensor:
    """Its noise as the pipeline calls it, at the inputs of `inputs`."""
    model = a_model(folder)
    with torch.no_grad():
        return model.call(unet, *inputs(model))


@pytest.mark.parametrize("kind", ["folder", "safetensors", "torch"])
def test_training_starts_from_a_folder_or_a_file(sdxl: Path, tmp_path: Path, kind: str) -> None:
    unet = other_unet(sdxl)
    init = str(tmp_path)
    if kind == "folder":
        unet.save_pretrained(tmp_path)
    elif kind == "safetensors":
        save_file(unet.half().state_dict(), tmp_path / "x.safetensors")
        init += ":x.safetensors"
    else:
        (tmp_path / "sub").mkdir()
        torch.save(unet.half().state_dict(), tmp_path / "sub" / "x.bin")
        init += ":sub/x.bin"
    model = a_model(sdxl, FULL, init=init)
    x, t, cond = inputs(model)
    with torch.no_grad():
        start, policy, reference = (model.eps(x, t, cond, who) for who in (model.start, "policy", None))
    assert model.start == "init"
    assert torch.equal(start, policy)
    assert torch.equal(start, noise_of(unet.float(), sdxl))
    assert torch.equal(reference, a_model(sdxl).eps(x, t, cond, None))
    assert not any(parameter.requires_grad for parameter in model.copies["init"].parameters())


def test_training_starts_from_a_fused_lora(sdxl: Path, tmp_path: Path) -> None:
    spec = Spec("lora", 4, 16.0, LORA.targets)  # an alpha that a loader without metadata would lose
    trained = a_model(sdxl, spec, perturb=True)
    trained.export("policy", tmp_path, spec)
    model = a_model(sdxl, LORA, init=f"{tmp_path}:pytorch_lora_weights.safetensors")
    x, t, cond = inputs(model)
    pipe = pipeline(sdxl)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with torch.no_grad():
        start, policy = model.eps(x, t, cond, model.start), model.eps(x, t, cond, "policy")
        assert torch.equal(start, policy)
        assert torch.equal(start, noise_of(pipe.unet, sdxl))
        torch.testing.assert_close(start, trained.eps(x, t, cond, "policy"), rtol=0, atol=1e-5)
        assert (start - model.eps(x, t, cond, None)).abs().max() > 0.01
        assert torch.equal(model.eps(x, t, cond, None), a_model(sdxl).eps(x, t, cond, None))


def test_training_starts_from_a_lora_in_kohyas_names(sdxl: Path, tmp_path: Path) -> None:
    """As latent-consistency/lcm-lora-sdxl is: lora_unet_*, with an alpha beside each layer, and on more layers than attention's."""
    attention = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    targets = (*attention, "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
    unet, noise, rank, alpha = a_model(sdxl).denoiser, generator(0, "w"), 4, 2.0
    moves, weights = {}, {}
    for at, layer in unet.named_modules():
        if at.endswith(targets):
            out, *size = layer.weight.shape
            up, down = 0.1 * torch.randn(out, rank, generator=noise), 0.1 * torch.randn(rank, *size, generator=noise)
            key = f"lora_unet_{at.replace('.', '_')}"
            flat = up[:, :, None, None].clone() if len(size) == 3 else up
            weights |= {f"{key}.lora_up.weight": flat, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(alpha)}
            moves[at] = alpha / rank * torch.einsum("or,r...->o...", up, down)
    assert {each for each in targets if any(at.endswith(each) for at in moves)} == set(targets)
    save_file(weights, tmp_path / "k.safetensors")
    start = a_model(sdxl, init=f"{tmp_path}:k.safetensors").copies["init"].state_dict()
    for name, before in unet.state_dict().items():
        move = moves.get(name.removesuffix(".weight"), torch.zeros(()))
        torch.testing.assert_close(start[name], before + move, rtol=0, atol=1e-6)


def test_a_file_of_a_hub_repository_comes_from_the_cache(sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, snapshot = other_unet(sdxl), tmp_path / "models--someone--weights" / "snapshots" / ("0" * 40)
    (snapshot / "sub").mkdir(parents=True)
    save_file(unet.state_dict(), snapshot / "sub" / "x.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = a_model(sdxl, init="someone/weights:sub/x.safetensors")
    with torch.no_grad():
        assert torch.equal(model.eps(*inputs(model), "init"), noise_of(unet, sdxl))
    with pytest.raises(MissingAsset, match=r"`hf download someone/weights y\.safetensors`"):
        a_model(sdxl, init="someone/weights:y.safetensors")


def test_sixteen_bits_hold_the_frozen_weights_alone(sdxl: Path) -> None:
    model = a_model(sdxl, LORA, dtype="bfloat16", init=f"{sdxl}/unet:diffusion_pytorch_model.safetensors")
    x, t, cond = inputs(model)
    eps = model.eps(x, t, cond, "policy", guidance=5.0)
    assert torch.equal(eps, model.eps(x, t, cond, model.start, guidance=5.0))
    assert {each.dtype for each in (x, cond, eps, model.decode(x))} == {torch.float32}
    assert {each.dtype for each in model.trainable("policy").values()} == {torch.float32}
    assert {each.dtype for each in (next(model.copies["init"].parameters()), next(model.denoiser.parameters()))} == {torch.bfloat16}
    assert (eps - a_model(sdxl).eps(x, t, cond, None, guidance=5.0)).abs().max() < 0.1


def test_weights_that_do_not_fit_are_missing_assets(sdxl: Path, tmp_path: Path) -> None:
    weights = other_unet(sdxl).state_dict()
    key = "conv_in.weight"
    save_file({**weights, key: weights[key][:, :2].clone()}, tmp_path / "shape.safetensors")
    save_file({name: each for name, each in weights.items() if name != key}, tmp_path / "key.safetensors")
    save_file({**weights, "more": weights[key].clone()}, tmp_path / "more.safetensors")
    whole = (tmp_path / "more.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(weights, tmp_path / "whole.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:100_000])
    (tmp_path / "empty.bin").write_bytes(b"")
    torch.save({"state": [1]}, tmp_path / "list.bin")
    torch.save({"code": Path}, tmp_path / "code.bin")
    at = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter = {f"{at}.lora_A.weight": torch.zeros(4, 32), f"{at}.lora_B.weight": torch.zeros(32, 4)}
    save_file({name.replace("mid_block", "no_block"): each for name, each in adapter.items()}, tmp_path / "lora_nowhere.safetensors")
    save_file(
        {**adapter, f"{at}x.lora_A.weight": torch.zeros(4, 32), f"{at}x.lora_B.weight": torch.zeros(32, 4)},
        tmp_path / "lora_half.safetensors",
    )
    save_file({**adapter, f"{at}.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "lora_shape.safetensors")
    save_file(
        {name.replace("unet", "text_encoder"): each.clone() for name, each in adapter.items()} | adapter, tmp_path / "lora_text.safetensors"
    )
    for name in (
        *("shape.safetensors", "key.safetensors", "more.safetensors", "cut.safetensors", "cut.bin", "empty.bin", "list.bin", "code.bin"),
        *("lora_nowhere.safetensors", "lora_half.safetensors", "lora_shape.safetensors", "lora_text.safetensors"),
        *("nothing.bin", "nothing.safetensors"),
    ):
        with pytest.raises(MissingAsset) as caught:
            a_model(sdxl, init=f"{tmp_path}:{name}")
        assert f"`hf download {tmp_path} {name}`" in str(caught.value)
        assert "\n" not in str(caught.value)
    for init, command in (
        ("nobody/nothing:x.bin", "hf download nobody/nothing x.bin"),
        ("nobody/nothing", "hf download nobody/nothing"),
        ("package://models/nothing", "hf download "),
        ("too/many/parts:x.bin", "hf download too/many/parts x.bin"),
    ):
        with pytest.raises(MissingAsset, match=command):
            a_model(sdxl, init=init)


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    words = ["model=sdxl_dmd2", "method=pso", "reward=colour", "epochs=1", f"model.init={tmp_path}:x.bin"]
    hashes = []
    for content in (b"1", b"2", b"1"):
        (tmp_path / "x.bin").write_bytes(content)
        _digest.cache_clear()
        hashes.append(compose(words).hash)
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_network_that_takes_its_guidance_gets_it(sdxl: Path, tmp_path: Path) -> None:
    other_unet(sdxl, time_cond_proj_dim=32).save_pretrained(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path)
    model, pipe = a_model(sdxl, init=str(tmp_path), embedded_guidance=8.0), pipeline(sdxl, unet=unet)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    cond = model.encode(PROMPTS)
    with torch.no_grad():
        for eps, t, latents in seen(pipe, inputs(model)[0], 8.0):
            torch.testing.assert_close(model.eps(latents, t.expand(2), cond, "init"), eps, rtol=0, atol=1e-5)
        other = a_model(sdxl, init=str(tmp_path), embedded_guidance=1.0)
        assert not torch.allclose(other.eps(latents, t.expand(2), cond, "init"), eps, atol=1e-3)
        assert torch.equal(model.eps(latents, t.expand(2), cond, None), a_model(sdxl).eps(latents, t.expand(2), cond, None))
    with pytest.raises(ValueError, match="embedded_guidance=null"):
        a_model(sdxl, init=str(tmp_path))
    with pytest.raises(ValueError, match=r"embedded_guidance=8\.0: .* make it null"):
        a_model(sdxl, embedded_guidance=8.0)


def test_euler_ancestral_is_diffusers_own_over_a_trajectory(sdxl: Path) -> None:
    """Their latents are ours divided by alpha; their first is noise times the largest sigma, so ours is noise times sigma_t."""
    model = a_model(sdxl)
    policy = Policy(model, FewStep(times=TRAILING, kernel="euler_ancestral", guidance=1.0), None, chunk=8)
    theirs = EulerAncestralDiscreteScheduler.from_config(model.pipeline[0].scheduler.config, timestep_spacing="trailing")
    theirs.set_timesteps(4)
    assert theirs.timesteps.tolist() == TRAILING
    noise, cond = torch.randn(2, *model.shape, generator=generator(0, "x")), model.encode(PROMPTS)
    x, y = model.alpha_sigma(torch.tensor([999]))[1] * noise, theirs.init_noise_sigma * noise
    assert policy.trained_steps.tolist() == [True, True, True, False]
    with torch.no_grad():
        for k, t in enumerate(theirs.timesteps):
            alpha = model.alpha_sigma(t.long().expand(2))[0]
            torch.testing.assert_close(x, alpha * y, rtol=0, atol=1e-4)
            step = policy.sampler.step(model, x, torch.full((2,), k), cond, None)
            x = step.mean + step.std * torch.randn(x.shape, generator=generator(0, "step", k))
            eps = model.eps(theirs.scale_model_input(y, t), t.long().expand(2), cond, None)
            y = theirs.step(eps, t, y, generator=generator(0, "step", k)).prev_sample
    torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


def test_one_step_of_turbo_is_the_pipelines_own(sdxl: Path) -> None:
    model, pipe = a_model(sdxl), pipeline(sdxl)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    check_one_step(model, pipe, OneStep(time=999, guidance=1.0), atol=1e-4)


def test_one_step_of_dmd2_is_the_pipelines_own(sdxl: Path) -> None:
    model, pipe = a_model(sdxl), pipeline(sdxl)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    check_one_step(model, pipe, FewStep(times=[399], kernel="renoise", guidance=1.0), atol=1e-4, timesteps=[399])


def check_one_step(model: StableDiffusionXL, pipe: StableDiffusionXLPipeline, sampler: Any, atol: float, **call: Any) -> None:
    policy, x = Policy(model, sampler, None, chunk=8), torch.randn(2, *model.shape, generator=generator(0, "x"))
    ours = policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))
    theirs = pipe(PROMPTS, num_inference_steps=1, guidance_scale=0.0, latents=x, output_type="pt", **call).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("times", [TRAILING, [999, 759, 499, 259]], ids=["dmd2", "lcm"])
def test_renoise_is_the_lcm_schedulers_over_a_trajectory(sdxl: Path, times: list[int]) -> None:
    model = a_model(sdxl)
    sampler = FewStep(times=times, kernel="renoise", guidance=1.0)
    theirs = LCMScheduler.from_config(model.pipeline[0].scheduler.config)
    theirs.set_timesteps(4) if times != TRAILING else theirs.set_timesteps(timesteps=times)
    assert theirs.timesteps.tolist() == times
    x, cond = torch.randn(2, *model.shape, generator=generator(0, "x")), model.encode(PROMPTS)
    y = x * theirs.init_noise_sigma
    with torch.no_grad():
        for k, t in enumerate(theirs.timesteps):
            step = sampler.step(model, x, torch.full((2,), k), cond, None)
            x = step.mean + step.std * torch.randn(x.shape, generator=generator(0, "step", k))
            y = theirs.step(model.eps(y, t.expand(2), cond, None), t, y, generator=generator(0, "step", k)).prev_sample
            torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


def test_the_pipeline_is_the_same_at_every_build(sdxl: Path, tmp_path: Path) -> None:
    tiny_sdxl.build(tmp_path)
    for file in sorted(tmp_path.rglob("*.safetensors")):
        here, there = load_file(file), load_file(sdxl / file.relative_to(tmp_path))
        assert all(torch.equal(here[name], there[name]) for name in here | there)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 5e6
