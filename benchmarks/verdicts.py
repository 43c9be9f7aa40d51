"""What is made of measurements: ratios with their intervals, whether two sides do the same, what is missed, what has changed."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import yaml

WANTED = yaml.safe_load((Path(__file__).parent / "bench.yaml").read_text())
Taken = tuple[float, dict[str, np.ndarray]]  # an optimiser step's loss and gradients


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The geometric mean of the repeats' ratios, with its 95 % interval (Student's t over the logarithms of pairs)."""
    logs = np.log(np.array(ours) / np.array(theirs))
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    low, mean, high = (float(math.exp(logs.mean() + each)) for each in (-half, 0.0, half))
    return {"ratio": mean, "low": low, "high": high}


def gap(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The length of the difference between two gradients, as a share of the second's."""
    if one.keys() != other.keys():
        raise SystemExit(f"the two sides have gradients of different weights: {sorted(one.keys() ^ other.keys())[:3]}")

    def length(arrays: list[np.ndarray]) -> float:
        return math.sqrt(sum(float(np.square(each, dtype=np.float64).sum()) for each in arrays))

    return length([one[key] - other[key] for key in one]) / length(list(other.values()))


def apart(ours: Taken, plain: Taken) -> dict[str, float]:
    """How far losses lie apart, as a share of the second where that is above 1 (normalised advantages' sum is 0), and gradients."""
    return {"loss": abs(ours[0] - plain[0]) / max(1.0, abs(plain[0])), "gradients": gap(ours[1], plain[1])}


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All that has a ratio, by name."""
    several = [*found.get("table", {}).get("rows", []), *found.get("processes", []), *found.get("switches", [])]
    return {row["name"]: row for row in [*several, *([found["sweep"]] if "sweep" in found else [])]}


def missed(found: dict[str, Any]) -> list[str]:
    """What a full run must reach, and did not."""
    there, said = rows(found), []
    for name, most in WANTED["at_most"].items():
        if name in there and not there[name]["high"] <= most:
            said.append(f"{name}: the ratio's upper end is {there[name]['high']:.3f}, at most {most} is wanted")
    for name, row in there.items():
        ours, plain = (statistics.median(row.get("peak_bytes", {}).get(side, [0.0])) for side in ("ours", "plain"))
        if ours > plain:
            said.append(f"{name}: peak memory {ours / 1e6:.0f} MB, the plain loop's is {plain / 1e6:.0f} MB")
        for phase in ("rollout", "update"):
            spent = row.get("ours", {}).get(phase, {})
            if not spent.get("of_the_floor"):  # DI* collects nothing but prompts
                continue
            if (share := spent["denoiser_share"]) < (least := WANTED["denoiser_share"]):
                besides = f"and {spent['decoder_share']:.0%} in the VAE's decoder"
                said.append(f"{name}: {share:.0%} of the {phase} is in the denoiser ({besides}), at least {least:.0%} is wanted")
        if row.get("speedup", math.inf) < WANTED["speedup"]:
            said.append(f"{name}: {row['speedup']:.2f} times as fast, {WANTED['speedup']} is wanted")
    for name, grown in found.get("scaling", {}).items():
        if grown["off_the_curve"] > WANTED["curve"]:
            said.append(f"{name}: {grown['off_the_curve']:.0%} off its curve, at most {WANTED['curve']:.0%} is wanted")
    if "scaling" in found:
        peak = found["scaling"]["steps"]["peak_bytes"]
        if max(peak) / min(peak) - 1 > WANTED["memory_growth"]:
            said.append(f"peak memory grows from {min(peak) / 1e6:.0f} to {max(peak) / 1e6:.0f} MB with the number of steps")
    for name, seconds in found.get("startup", {}).get("seconds", {}).items():
        if name in WANTED["seconds"] and not seconds < WANTED["seconds"][name]:
            said.append(f"{name}: {seconds:.2f} s, less than {WANTED['seconds'][name]} is wanted")
    return said


def changes(found: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Ratios that are more than WANTED["changed"] away from those of the committed results."""
    now, then = ({name: row["ratio"] for name, row in rows(each).items()} for each in (found, before))
    return [
        f"{name}: {'slower' if now[name] > then[name] else 'faster'}, {now[name]:.3f} where {then[name]:.3f} is committed"
        for name in now
        if name in then and abs(now[name] / then[name] - 1) > WANTED["changed"]
    ]


def paired(row: dict[str, Any]) -> str:
    """A ratio as it is printed."""
    return f"{row['name']:<40}{row['ratio']:>6.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
