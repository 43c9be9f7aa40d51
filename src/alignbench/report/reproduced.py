"""A paper's table made again, as text for people (Markdown, HTML), for papers (LaTeX) and as rows for programs (csv).

All from the plain numbers of table.json: nothing is computed here, so nothing can be shown that is not there.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignbench.report import comparison_page
from alignbench.report.comparison import brief, plain, shown
from alignbench.report.comparison_page import Block, Claim
from alignbench.report.latex import escaped

TIERS = {
    "sandbox": "**Sandbox tier: checks the direction of claims, not digits.** Everything is small enough for a laptop; no number of "
    "this tier stands for one of the paper.",
    "paper": "**Paper tier: the paper's models, rewards and prompts.** Each number is within the tolerance of the printed one, or outside.",
}
FULL = {"V": "", "S": " (secondary source)"}


def markdown(made: dict[str, Any]) -> str:
    parts = [f"# {made['title']}", f"arXiv {made['arxiv']}. {TIERS[made['tier']]}", _runs(made)]
    for block in blocks(made):
        lines = [block.head, ["---"] * len(block.head), *block.body]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts += [f"## {block.title}", table, block.text]
    if made["comparison"] is not None:
        parts += [f"## The {made['tier']} runs", brief(made["comparison"], depth=3)]
    return "\n\n".join(parts) + "\n"


def _runs(made: dict[str, Any]) -> str:
    trained = [f"{name}, {len(row['seeds'])}" for name, row in made["rows"].items() if row["seeds"]]
    failed = [f"{name} (seed {', '.join(map(str, row['failed']))})" for name, row in made["rows"].items() if row["failed"]]
    said = f"Runs that finished, by row: {'; '.join(trained) or 'none'}."
    return said + (f" Failed, and counted as the reference where their row has others: {'; '.join(failed)}." if failed else "")


def blocks(made: dict[str, Any]) -> list[Block]:
    return [*([_claims(made)] if made["claims"] else []), _numbers(made)]


def _claims(made: dict[str, Any]) -> Block:
    body = []
    for claim in made["claims"]:
        seeds = "/".join(" ".join(map(str, counts)) for counts in claim["seeds"] if counts)
        why = f" ({claim['why']})" if claim["why"] else ""
        body.append([claim["says"] or compared(claim), claim["source"] or "-", compared(claim), _spread(claim["difference"]), seeds or "-"])
        body[-1].append(f"**{claim['verdict']}**{why}" if claim["verdict"] in ("holds", "contradicted") else claim["verdict"] + why)
    percent = f"{100 * made['level']:g} %"
    text = (
        f"Intervals are {percent}, over training seeds and prompts (docs/statistics.md), and not widened for the number of claims. A claim "
        "holds where its interval lies on the claimed side of 0, is contradicted where it lies on the other, and is not shown where it "
        "contains 0. An interval over prompts alone, where a row has one seed, speaks for no other training."
    )
    return Block("Claims", ["claim", "source", "what is compared", "a less b", "seeds of a/b", "verdict"], body, text)


def _spread(found: dict[str, Any] | None, sign: str = "+") -> str:
    """The value with its interval, and what that speaks for where it is not seeds and prompts."""
    if found is None:
        return "-"
    if found["over"] == "nothing":
        return f"{plain(found['value'])} (one seed, no interval)"
    return shown(found, sign=sign) + {"prompts": " over prompts alone", "seeds": " over seeds alone"}.get(found["over"], "")


def compared(claim: dict[str, Any]) -> str:
    a, b = (" and ".join(claim[side]) for side in ("a", "b"))
    pair = f"{a} less {b}" if b else f"change of {a}"
    match claim["kind"]:
        case "matched":
            at = f" of {claim['gain']:.3g}" if claim["gain"] is not None else ""
            what = f"{claim['metric']} at an equal gain of {claim['at']}" if not at else f"{claim['metric']} at a gain{at} in {claim['at']}"
        case "locality":
            what = f"gain in {claim['inside']} less that in {claim['outside']}"
        case _:
            what = claim["metric"]
    return f"{pair}: {what}, claimed {claim['direction']}"


def _numbers(made: dict[str, Any]) -> Block:
    several = len({line["benchmark"] for line in made["paper"]}) > 1
    body = []
    for line in made["paper"]:
        unit = f" {line['unit']}" if line["unit"] else ""
        where = ", ".join(filter(None, [line["paper"], line["arxiv"], line["table"]])) + FULL.get(line["tag"], "")
        printed = f"{line['value']}{unit} (± {line['tolerance']})" if line["value"] else "-"
        ours = _spread(line["ours"], sign="-") if line["ours"] else line["verdict"] if line["verdict"].startswith("not run") else "-"
        body.append([line["row"], line["metric"], *([line["benchmark"]] if several else []), printed, where, ours, str(line["n"] or "-")])
        body[-1].append(line["verdict"])
    head = ["row", "metric", *(["benchmark"] if several else []), "paper (± tolerance)", "where", "ours", "seeds", "verdict"]
    text = "The tolerance is ours: how far a number may be and still count as the same; the README of this folder says how it was chosen."
    return Block("The paper's numbers", head, body, text)


def verdicts(made: dict[str, Any]) -> str:
    """One line: how the claims and the numbers came out."""
    parts = []
    for lines, what in ((made["claims"], "claims"), (made["paper"], "numbers")):
        counts = Counter(line["verdict"].partition(":")[0] for line in lines)
        parts += [f"{what}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}"] if lines else []
    return "; ".join(parts)


def rows_csv(made: dict[str, Any]) -> str:
    """A line for each claim and for each of the paper's numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    printed = ["value", "unit", "tolerance", "paper", "arxiv", "table", "tag"]
    writer.writerow(["tier", "block", "row", "metric", "benchmark", *printed, "ours", "low", "high", "p", "seeds", "verdict"])
    for claim in made["claims"]:
        found = claim["difference"] or {}
        seeds = "/".join(" ".join(map(str, counts)) for counts in claim["seeds"] if counts)
        numbers = [found.get(key, "") for key in ("value", "low", "high", "p")]
        metric = claim["metric"] or f"{claim['inside']} less {claim['outside']}"
        where = [claim["says"] or compared(claim), metric, ""]
        writer.writerow([made["tier"], "claim", *where, "", "", "", claim["source"], "", "", "", *numbers, seeds, claim["verdict"]])
    for line in made["paper"]:
        found = line["ours"] or {}
        numbers = [found.get(key, "") for key in ("value", "low", "high", "p")]
        where = [line["row"], line["metric"], line["benchmark"]]
        writer.writerow([made["tier"], "number", *where, *(line[key] for key in printed), *numbers, line["n"] or "", line["verdict"]])
    return out.getvalue()


def latex(made: dict[str, Any]) -> str:
    """A booktabs table of each block, to be read in with \\input."""
    parts = [f"% {made['title']}, arXiv {made['arxiv']}, {made['tier']} tier; needs \\usepackage{{booktabs}}"]
    for block in blocks(made):
        lines = [" & ".join(map(_tex, line)) + r" \\" for line in (block.head, *block.body)]
        columns = "l" * len(block.head)
        parts.append("\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]))
        parts[-1] += "\n\\end{tabular}"
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    bold = re.fullmatch(r"\*\*(.*?)\*\*(.*)", text)
    return rf"\textbf{{{escaped(bold[1])}}}{_tex(bold[2])}" if bold else escaped(text).replace("±", r"$\pm$")


def page(made: dict[str, Any], folders: Sequence[Path]) -> str:
    """The page of the runs in these folders, with the claims and the paper's numbers before everything else; it names no machine."""
    nothing = {key: made[key] for key in ("level", "replicates", "seed")} | {"comparisons": [], "without_a_row": []}
    claims: list[Claim] = [
        {
            "says": claim["says"] or compared(claim),
            "source": "; ".join(filter(None, [claim["source"], compared(claim)])),
            "verdict": claim["verdict"] + (f" ({claim['why']})" if claim["why"] else ""),
        }
        | {end: (claim["difference"] or {}).get(end) for end in ("value", "low", "high")}  # type: ignore[misc]
        for claim in made["claims"]
    ]
    intro = f"arXiv {made['arxiv']}. {TIERS[made['tier']].replace('**', '')}\n\n{_runs(made)}"
    return comparison_page.page(
        made["comparison"] or nothing, folders, title=made["title"], intro=intro, claims=claims, blocks=[_numbers(made)], machine=False
    )
