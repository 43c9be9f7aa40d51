"""PixArt: against diffusers' own pipelines, the mask that travels with the prompt, adapters as peft reads them, merged pipelines."""

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny_pixart
import torch
from conftest import FULL, LORA
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from peft import PeftModel

from alignbench.models.base import Spec
from alignbench.models.pixart import PixArt, PixArtSigma, packed, unpacked
from alignbench.policy import Policy
from alignbench.rng import Draws, generator
from alignbench.samplers.ddim import DDIM

PROMPTS = ["A small red circle at the left on a blue background ", "a cat"]  # the pipeline lowercases and strips
PLAIN: dict[str, Any] = {"guidance_scale": 4.5, "use_resolution_binning": False, "clean_caption": False}
KINDS = {"alpha": (PixArt, PixArtAlphaPipeline), "sigma": (PixArtSigma, PixArtSigmaPipeline)}
both = pytest.mark.parametrize("kind", KINDS)
copies = pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])


def a_model(folder: Path, spec: Spec | None = None, perturb: bool = False) -> PixArt:
    model = KINDS[folder.name.split("_")[0]][0](path=str(folder), revision=None, init=None, gated=False, dtype="float32", schedule={})
    if spec:
        model.grow("policy", spec)
        if perturb:  # as if it had been trained
            noise = generator(0, "perturb")
            for parameter in model.trainable("policy").values():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    return model


def pipeline(folder: Path) -> Any:
    pipe: Any = KINDS[folder.name.split("_")[0]][1].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(model: PixArt) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, *model.shape, generator=generator(0, "x")), torch.tensor([11, 701]), model.encode(PROMPTS)


def as_ddim(pipe: Any) -> Any:
    """The model's grid in diffusers; DDIM clips x_0 to [-1, 1] unless it is told not to, which DPM-Solver's config does not say."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    return pipe


def recorded(pipe: Any) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Fills, as the pipeline runs, with what its scheduler is given: noise, time, latents."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def recording(*given: Any, **more: Any) -> Any:
        seen.append(given)
        return step(*given, **more)

    pipe.scheduler.step = recording
    return seen


def written(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As PixArt-alpha's 1024-pixel weights, which are told the image's size."""
    folder = tmp_path_factory.mktemp("large") / "alpha_large"
    tiny_pixart.build(folder, sample_size=128, conditions=True)
    return folder


@pytest.mark.parametrize("width", [1, 16, 120, 4096])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 120, 300])
def test_a_packed_mask_comes_out_again(length: int, width: int) -> None:
    noise = generator(0, "pack")
    states, mask = torch.randn(2, length, width, generator=noise), (torch.rand(2, length, generator=noise) > 0.5).long()
    cond = packed(states, mask)
    assert cond.shape == (2, length + -(-length // width), width)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(unpacked(cond), (states, mask.float()), strict=True))


def test_tiny_pipelines_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    for build in (tiny_pixart.build, tiny_pixart.build_sigma):
        torch.rand(1)  # whatever the generator of the tests stands at
        for name in ("a", "b"):
            build(tmp_path / build.__name__ / name)
        first, second = (written(tmp_path / build.__name__ / name) for name in ("a", "b"))
        assert first == second
        assert sum(map(len, first.values())) < 5e6


@both
def test_prompts_are_as_long_as_the_pipeline_says(kind: str, pixart: dict[str, Path]) -> None:
    states, _ = unpacked(a_model(pixart[kind]).encode(PROMPTS))
    assert states.shape == (2, {"alpha": 120, "sigma": 300}[kind], 16)


@pytest.mark.step("guided eps")
@both
def test_guided_noise_is_the_pipelines_own(kind: str, pixart: dict[str, Path]) -> None:
    model, pipe = a_model(pixart[kind]), as_ddim(pipeline(pixart[kind]))
    seen = recorded(pipe)
    x, _, cond = inputs(model)
    pipe(PROMPTS, num_inference_steps=4, latents=x, output_type="latent", **PLAIN)
    assert [int(t) for _, t, _ in seen] == model.times(4)[:-1].tolist()
    for noise, t, latents in seen:
        close(model.eps(latents, t.expand(2), cond, None, guidance=4.5), noise, atol=1e-5)
        assert (model.eps(latents, t.expand(2), cond, None) - noise).abs().max() > 0.01


@torch.no_grad()
def test_guided_noise_of_weights_that_are_told_the_size_is_the_pipelines_own(large: Path) -> None:
    model, pipe = a_model(large), as_ddim(pipeline(large))
    seen = recorded(pipe)
    x, _, cond = inputs(model)
    pipe(PROMPTS, num_inference_steps=2, latents=x, output_type="latent", **PLAIN)
    for noise, t, latents in seen:
        close(model.eps(latents, t.expand(2), cond, None, guidance=4.5), noise, atol=1e-5)


@pytest.mark.step("rollout")
@both
def test_a_deterministic_rollout_is_the_pipelines_own_image(kind: str, pixart: dict[str, Path]) -> None:
    model = a_model(pixart[kind])
    policy = Policy(model, DDIM(steps=5, eta=0.0, guidance=4.5, deterministic=0), None, chunk=8)
    x, _, _ = inputs(model)
    ours = policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))
    theirs = as_ddim(pipeline(pixart[kind]))(PROMPTS, num_inference_steps=5, latents=x, output_type="pt", **PLAIN).images
    close(ours, theirs, atol=1e-4)
    assert ours.std() > 0.05
    with pytest.raises(ValueError, match=r"^eval\.pixels=20: this model's images are multiples of 8 pixels"), model.sized(20):
        pass  # 5 of the latent's, and the transformer takes squares of 2x2
    with model.sized(16):
        x, _, _ = inputs(model)
        ours = policy.images(policy.rollout(PROMPTS, "image", Draws(0, 0).each("r", range(2)), x=x))
    pipe = as_ddim(pipeline(pixart[kind]))
    close(ours, pipe(PROMPTS, num_inference_steps=5, latents=x, output_type="pt", **PLAIN, height=16, width=16).images, atol=1e-4)
    assert ours.shape[2:] == (16, 16)


def test_the_grid_is_the_pipelines_own_but_for_rounding(pixart: dict[str, Path]) -> None:
    model, scheduler = a_model(pixart["alpha"]), DPMSolverMultistepScheduler.from_pretrained(pixart["alpha"], subfolder="scheduler")
    for steps in (1, 4, 20, 50):
        scheduler.set_timesteps(steps)
        assert (model.times(steps)[:-1] - scheduler.timesteps).abs().max() <= 1
        assert model.times(steps)[-1] == -1  # the clean image


@pytest.mark.step("copies")
@both
@copies
def test_the_reference_is_the_untouched_base_bit_for_bit(kind: str, spec: Spec, pixart: dict[str, Path]) -> None:
    untouched = a_model(pixart[kind])
    x, t, cond = inputs(untouched)
    expected = untouched.eps(x, t, cond, None, guidance=4.5)
    model = a_model(pixart[kind], spec)
    assert torch.equal(model.eps(x, t, cond, "policy", guidance=4.5), expected)  # a fresh copy is the reference
    for parameter in model.trainable("policy").values():
        parameter.data += 0.1
    assert (model.eps(x, t, cond, "policy", guidance=4.5) - expected).abs().max() > 1e-3
    assert torch.equal(model.eps(x, t, cond, None, guidance=4.5), expected)


def test_adapters_sit_in_every_attention_and_alone_are_trained(pixart: dict[str, Path]) -> None:
    model = a_model(pixart["alpha"], LORA)
    assert len(model.trainable("policy")) == 2 * 2 * 4 * 2  # blocks, attentions, projections, factors
    x, t, cond = inputs(model)
    model.eps(x, t, cond, "policy").square().sum().backward()
    assert {name for name, parameter in model.denoiser.named_parameters() if parameter.grad is not None} == set(model.trainable("policy"))


def test_what_stands_under_the_mask_does_not_matter(pixart: dict[str, Path]) -> None:
    model = a_model(pixart["alpha"])
    x, t, cond = inputs(model)
    states, mask = unpacked(cond)
    assert mask.sum(1).tolist() == [len("".join(prompt.split())) + len(prompt.split()) + 1 for prompt in PROMPTS]  # "_" a word, and the end
    garbage = torch.where(mask[..., None].bool(), states, 10 * torch.randn(states.shape, generator=generator(0, "garbage")))
    expected = model.eps(x, t, cond, None)
    close(model.eps(x, t, packed(garbage, mask), None), expected, atol=1e-6)
    assert (model.eps(x, t, packed(garbage, torch.ones_like(mask)), None) - expected).abs().max() > 1e-3
    assert (model.eps(x, t, packed(states, torch.ones_like(mask)), None) - expected).abs().max() > 1e-3  # padding as it is, but read


@both
def test_prompts_of_different_length_do_not_see_each_other(kind: str, pixart: dict[str, Path]) -> None:
    model = a_model(pixart[kind])
    x, t, cond = inputs(model)
    together = model.eps(x, t, cond, None, guidance=4.5)
    for row in range(2):
        alone = a_model(pixart[kind])
        close(alone.eps(x[[row]], t[[row]], alone.encode([PROMPTS[row]]), None, guidance=4.5), together[[row]], atol=1e-5)
    assert (model.eps(x, t, cond[[1, 0]], None, guidance=4.5) - together).abs().max() > 0.01


@pytest.mark.step("decode")
@both
def test_decoding_is_differentiable(kind: str, pixart: dict[str, Path]) -> None:
    model = a_model(pixart[kind])
    x = inputs(model)[0].requires_grad_(True)
    model.decode(x).mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.step("export")
@both
def test_an_exported_adapter_is_one_that_peft_loads(kind: str, pixart: dict[str, Path], tmp_path: Path) -> None:
    spec = Spec("lora", 4, 16.0, LORA.targets)  # a scale of 4, which a loader must not forget
    model = a_model(pixart[kind], spec, perturb=True)
    x, t, cond = inputs(model)
    for name in ("a", "b"):
        model.export("policy", tmp_path / name, spec)
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert set(written(tmp_path / "a")) == {"adapter_config.json", "adapter_model.safetensors"}

    before = model.eps(x, t, cond, None, guidance=4.5)
    states, mask = unpacked(torch.cat([model.encode([""]).expand_as(cond), cond]))
    pipe = pipeline(pixart[kind])
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path / "a")
    with torch.no_grad():
        size = {"resolution": None, "aspect_ratio": None}
        given = {"timestep": t.repeat(2), "encoder_hidden_states": states, "encoder_attention_mask": mask, "added_cond_kwargs": size}
        empty, full = pipe.transformer(x.repeat(2, 1, 1, 1), **given).sample.chunk(2, dim=1)[0].chunk(2)
        tuned = model.eps(x, t, cond, "policy", guidance=4.5)
    close(empty + 4.5 * (full - empty), tuned, atol=1e-5)
    assert (before - tuned).abs().max() > 0.01


@both
@copies
def test_a_fused_pipeline_needs_no_adapter(kind: str, spec: Spec, pixart: dict[str, Path], tmp_path: Path) -> None:
    model = a_model(pixart[kind], spec, perturb=True)
    x, t, cond = inputs(model)
    tuned, before = (model.eps(x, t, cond, who, guidance=4.5) for who in ("policy", None))
    folders = [tmp_path / name / f"{kind}_fused" for name in ("one", "two")]
    for folder in folders:
        model.export_pipeline("policy", folder)
    assert written(folders[0]) == written(folders[1])
    fused = a_model(folders[0])
    assert not any("lora" in name for name, _ in fused.denoiser.named_parameters())
    close(fused.eps(x, t, fused.encode(PROMPTS), None, guidance=4.5), tuned, atol=1e-4)
    assert (before - tuned).abs().max() > 0.01
    for who, expected in (("policy", tuned), (None, before)):  # the model itself stayed as it was
        assert torch.equal(model.eps(x, t, cond, who, guidance=4.5), expected)
    images = pipeline(folders[0])(PROMPTS, num_inference_steps=2, latents=x, output_type="pt", **PLAIN).images
    assert images.shape == (2, 3, 32, 32)


def test_an_exported_full_copy_loads_as_a_transformer(pixart: dict[str, Path], tmp_path: Path) -> None:
    model = a_model(pixart["alpha"], FULL, perturb=True)
    model.export("policy", tmp_path, FULL)
    x, t, cond = inputs(model)
    PixArtTransformer2DModel.from_pretrained(tmp_path / "transformer")
    student = PixArt(
        path=str(pixart["alpha"]), revision=None, init=str(tmp_path / "transformer"), gated=False, dtype="float32", schedule={}
    )
    assert torch.equal(student.eps(x, t, cond, "init"), model.eps(x, t, cond, "policy"))
    assert torch.equal(student.eps(x, t, cond, None), model.eps(x, t, cond, None))
