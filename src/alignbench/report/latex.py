"""A comparison as LaTeX tables with booktabs' rules: \\usepackage{booktabs}, then \\input{table}."""

import re
from collections.abc import Sequence
from typing import Any

from alignbench.report.comparison import OTHER, decimals, plain

SPECIAL = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\ttfamily\char34}",  # \textquotedbl is not in every encoding
    "†": r"\dag{}",
    **{each: f"{{{each}}}" for each in "[]*"},  # at a line's start they would belong to the \\ before
}
DAGGER = r"$^{\dagger}$"


def latex(made: dict[str, Any]) -> str:
    """For each comparison its rows and, where methods are ranked, who differs. Needs the package booktabs and no other."""
    parts = ["% written by alignbench; needs \\usepackage{booktabs}"]
    for n, one in enumerate(made["comparisons"], start=1):
        parts.append(_rows(one, made, n))
        if one["ranked_by"]:
            parts.append(_contrasts(one, made, n))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Any text as LaTeX that prints it; controls and line ends become spaces."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    return "".join(SPECIAL.get(each, each) for each in text)


def number(interval: dict[str, Any] | None, bold: bool = False) -> str:
    """A value with its interval, in mathematics, so that its minus is one."""
    if interval is None:
        return "--"
    d = decimals(interval)
    text = "{value:+,.{d}f}\\ [{low:+,.{d}f},\\ {high:+,.{d}f}]".format(**interval, d=d).replace(",", "{,}").replace("{,}\\ ", ",\\ ")
    return f"$\\mathbf{{{text}}}$" if bold else f"${text}$"


def _rows(one: dict[str, Any], made: dict[str, Any], n: int) -> str:
    rows = one["rows"]
    names = list(dict.fromkeys(name for row in rows for name, found in row["metrics"].items() if found["label"] not in OTHER))
    start = [next(row["metrics"][name]["reference"] for row in rows if name in row["metrics"]) for name in names]
    body = [["reference", "", *(plain(each).replace("-", "$-$") for each in start)]]
    for row in rows:
        failed = f", {len(row['failed'])} failed" if row["failed"] else ""
        cells = []
        for name in names:
            found = row["metrics"].get(name)
            if found is None:
                cells.append("--")
                continue
            beyond = found["label"] in ("gold", "held out") and (found["change"]["low"] > 0 or found["change"]["high"] < 0)
            mark = DAGGER if found["label"] == "trained" else ""
            cells.append(f"{plain(found['mean']['value']).replace('-', '$-$')}{mark} {number(found['change'], beyond)}")
        body.append([escaped(row["label"]), f"{len(row['seeds'])}{failed}", *cells])
    said = (
        f"{escaped(one['model'])} on {escaped(one['dataset'])}, {one['prompts']} test prompts: mean, and paired change against the "
        f"reference with its {100 * made['level']:g}\\,\\% interval over seeds and prompts (with one seed over prompts alone), bold where "
        f"that excludes 0. {DAGGER}\\,trained on: no evidence by itself. A failed seed counts as the reference."
    )
    return _table(["method", "seeds", *map(escaped, names)], body, said, f"tab:methods-{n}")


def _contrasts(one: dict[str, Any], made: dict[str, Any], n: int) -> str:
    beyond = 1 - made["level"]
    body = [
        [
            f"{escaped(each['a'])} less {escaped(each['b'])}",
            number(each["difference"], each["holm"] < beyond),
            f"{each['difference']['p']:.3f}",
            f"{each['holm']:.3f}",
        ]
        for each in one["contrasts"]
    ]
    said = (
        f"Differences of changes in {escaped(one['ranked_by'])}; bold where Holm's correction over all of these leaves $p < {beyond:.2g}$."
    )
    return _table(["", "difference", "$p$", "$p$, Holm"], body, said, f"tab:differences-{n}")


def _table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str, label: str) -> str:
    lines = [
        r"\begin{table}",
        r"\centering\small",
        f"\\caption{{{caption}}}",
        f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)
