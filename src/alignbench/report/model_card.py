"""The model card of exported weights: README.md with the Hub's front matter, from a run's result and a few facts of its config."""

import json
from dataclasses import dataclass
from typing import Any

import yaml

HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "openrail",
    "creativeml-openrail-m",
    "openrail++",
    "bigscience-openrail-m",
}  # those the Hub has ids for
HELD_OUT = {
    "trained": "the reward that was trained on",
    "held out": "a reward that training never saw",
    "related": "a reward that shares a backbone, data or a judge with the trained one, so no evidence of its own",
    "unknown": "a reward of which it is not known whether it shares something with the trained one",
    "gold": "the truth that the trained reward stands for; training never saw it",
    "divergence": "how far from where training started",
    "surprise": "how hard the images are to denoise for the frozen reference",
    "diversity": "how different the images of one prompt are",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card says beside the result; no path of this machine is among it."""

    base: str  # Hub id, package://folder, or <words> where the weights are a local folder
    revision: str | None
    init: str | None  # likewise, of a denoiser that training started from; null: the pipeline's own
    licence: str  # of the base weights
    family: str  # the diffusers pipeline's class
    component: str  # what the denoiser is called there
    network: str  # the denoiser's class
    who: str  # whose weights these are, as the run names them: the policy or its moving average
    prompt: str  # an example
    rank: int
    alpha: float
    kohya: bool
    pipeline: bool
    deterministic: int  # how many of DDIM's last steps have eta 0
    window: tuple[int, int] | None  # the steps, the last left out, beside which DDIM's have eta 0, too
    pixels: int | None  # height and width of an image; None: the pipeline's own


def card(result: dict[str, Any], facts: Facts) -> str:
    choices, sampler = result["choices"], result["sampler"]
    what = f"A LoRA (rank {facts.rank}, alpha {facts.alpha:g})" if result["adapter"] == "lora" else f"A full copy of the {facts.component}"
    average = "" if facts.who == "policy" else f" (`{facts.who}`: the moving average that the run evaluates)"
    eta = "" if sampler["eta"] is None else f", eta {sampler['eta']:g}"
    eta += f" (0 in the last {facts.deterministic})" if facts.deterministic else ""
    eta += f" (0 outside steps {facts.window[0]} to {facts.window[1] - 1}, from 0)" if facts.window else ""
    evaluations = ", ".join(f"{who} {count:,}" for who, count in sorted(result["meters"]["network_evaluations"].items()))
    path_kl = next(
        (f"{metric['policy']:.4f} nats" for metric in result["metrics"] if metric["name"] == "kl"), "none: no step has a likelihood"
    )
    words = [word for word, asked in (("kohya=true", facts.kohya), ("pipeline=true", facts.pipeline)) if asked]
    first = result["metrics"][0]
    return f"""---
{yaml.safe_dump(_front_matter(result, facts), sort_keys=False, allow_unicode=True).strip()}
---
# {choices["model"]} aligned with {choices["reward"]} by {choices["method"]}

{what} for `{facts.base}`, trained by alignbench{average}. {_on_what(facts)}

| | |
|---|---|
| method | {choices["method"]} ({result["track"]}) |
| reward | {choices["reward"]} |
| dataset | {choices["dataset"]} |
| epochs, seed | {result["epochs"]}, {result["seed"]} |
| trained parameters | {result["trainable_parameters"]:,} |
| sampler | {sampler["name"]}, {sampler["steps"]} steps{eta}, guidance {sampler["guidance"]:g} |
| reward queries | {result["meters"]["reward_queries"]:,} |
| network evaluations | {evaluations or "none"} |
| path KL | {path_kl} |
| base weights' licence | {facts.licence} |

## On unseen test prompts

{_table(result["metrics"])}

Means over {first["images"]} images of {first["prompts"]} test prompts, each made before and after training from the same noise.
The interval (95 %) is over prompts and images of this one run, not over seeds.

## Loading

{_loading(result, facts)}

## Making it again

```
{result["command"]}
python -m alignbench export {" ".join(["<that run's folder>", *words])}
```
"""


def _front_matter(result: dict[str, Any], facts: Facts) -> dict[str, Any]:
    known = "-".join(facts.licence.lower().split())
    licence = {"license": known} if known in HUB_LICENCES else {"license": "other", "license_name": facts.licence}
    return {
        "base_model": result["choices"]["model"]
        if facts.base.startswith(("package://", "<"))
        else facts.base,  # the Hub links only its own
        **licence,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [
            "alignbench",
            "text-to-image",
            "diffusers",
            result["choices"]["method"],
            *(["lora"] if result["adapter"] == "lora" else []),
        ],
    }


def _on_what(facts: Facts) -> str:
    if facts.init is None:
        return f"Training started from the pipeline's own {facts.component}."
    return f"Training started from the {facts.component} `{facts.init}`, not from the pipeline's own."


def _table(metrics: list[dict[str, Any]]) -> str:
    lines = ["| metric | what it is | before | after | change | 95 % interval |", "|---|---|---|---|---|---|"]
    for metric in metrics:
        low, high = metric["interval"]
        kind = f"**{metric['label']}**: {HELD_OUT[metric['label']]}"
        values = f"{metric['reference']:.4f} | {metric['policy']:.4f} | {metric['difference']:+.4f} | [{low:+.4f}, {high:+.4f}]"
        lines.append(f"| {metric['name']} | {kind} | {values} |")
    return "\n".join(lines)


def _loading(result: dict[str, Any], facts: Facts) -> str:
    sampler, lora = result["sampler"], result["adapter"] == "lora"
    imports, lines = [facts.family], []
    if facts.pipeline:
        lines.append(f'pipe = {facts.family}.from_pretrained("<this folder>/pipeline")')
    else:
        base = _path(facts.base)
        more = f', revision="{facts.revision}"' if facts.revision else ""
        own = facts.init if lora else "<this folder>"  # whose denoiser takes the place of the pipeline's
        if own is not None:
            imports.append(facts.network)
            lines.append(f"{facts.component} = {facts.network}.from_pretrained({_path(own if lora else f'{own}/{facts.component}')})")
            more += f", {facts.component}={facts.component}"
        lines.append(f"pipe = {facts.family}.from_pretrained({base}{more})")
        if lora:
            lines.append('pipe.load_lora_weights("<this folder>")')
    call = f"num_inference_steps={sampler['steps']}, guidance_scale={sampler['guidance']:g}"
    call += f", height={facts.pixels}, width={facts.pixels}" if facts.pixels else ""
    after = ""
    if sampler["name"] == "DDIM":
        imports.append("DDIMScheduler")
        lines.append("pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)")
        call += f", eta={sampler['eta']:g}"
        lines.append(f"image = pipe({json.dumps(facts.prompt)}, {call}).images[0]")
        still = [f"the last {facts.deterministic}"] if facts.deterministic else []
        still += [f"all but {facts.window[0]} to {facts.window[1] - 1} (from 0)"] if facts.window else []
        if still:
            after = f"\nThe run itself took {' and '.join(still)} of these steps with eta 0, for which diffusers has no setting."
    else:
        after = (
            f"\nIt was trained for alignbench's sampler {sampler['name']} ({sampler['steps']} steps), which diffusers has not by that name."
        )
    located = ["from alignbench.config import located"] if any("located(" in line for line in lines) else []
    code = "\n".join([f"from diffusers import {', '.join(sorted(imports))}", *located, "", *lines])
    kohya = "\n`kohya.safetensors` is the same LoRA as ComfyUI and A1111 read it." if facts.kohya else ""
    return f"```python\n{code}\n```{after}{kohya}"


def _path(name: str) -> str:
    return f'located("{name}")' if name.startswith("package://") else f'"{name}"'
