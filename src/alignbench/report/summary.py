"""What a comparison says, in a few sentences: who changes the ranked metric, who is undecided, what is no evidence, at which budget."""

from collections.abc import Sequence
from typing import Any

from alignbench.report.comparison import budget, shown

NAMED, LETTERS = 3, 60  # so many rows are named in a sentence, of so many letters together; more are counted


def summary(one: dict[str, Any], level: float) -> dict[str, Any]:
    """lead: the sentence that matters most; facts: name and sentence of what it rests on."""
    rows = one["rows"]
    finished = sum(len(row["seeds"]) - len(row["failed"]) for row in rows)
    failed = sum(len(row["failed"]) for row in rows)
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    trained: dict[str, list[str]] = {name: [] for row in rows for name, each in row["metrics"].items() if each["label"] == "trained"}
    for row in rows:
        for name in trained:
            if row["metrics"].get(name, {}).get("label") == "trained":
                trained[name].append(row["label"])
    facts = [
        (
            "Runs",
            f"{finished} finished of {_all(rows)}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; "
            + (f"{failed} failed, and each counts as the reference." if failed else "none failed."),
        )
    ]
    if one["ranked_by"]:
        facts += _ranked(one, level)
    if trained:
        by = "; ".join(f"{name} by {'all' if len(own) == len(rows) else _named(own, rows)}" for name, own in trained.items())
        facts.append(("Trained on", f"{by}. That is no evidence of quality by itself, and nobody is ranked by it."))
    facts.append(("Budget", budget(rows)))
    return {"lead": _lead(one, level), "facts": facts}


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _lead(one: dict[str, Any], level: float) -> str:
    rows, metric = one["rows"], one["ranked_by"]
    if metric is None:
        return "Methods are not ranked: there is no judge that every row has and none was trained on."
    raised, lowered, undecided = sides(rows, metric)
    parts = []
    for group, verb in ((raised, "raise"), (lowered, "lower")):
        if group:
            one_alone = len(group) == 1
            change = shown(group[0]["metrics"][metric]["change"]).replace("-", "\N{MINUS SIGN}")
            by = f", by {change}" if one_alone else ""
            parts.append(f"{_some(group, rows)} {verb}{'s' if one_alone else ''} {metric}{by}")
    if undecided:
        who = _some(undecided, rows)
        if parts and who.startswith(f"{len(undecided)} of "):
            who = str(len(undecided))
        parts.append(f"{who} {'is' if len(undecided) == 1 else 'are'} undecided" + ("" if parts else f" on {metric}"))
    said = "; ".join(parts) + "."
    if (raised or lowered) and len(one["contrasts"]) > 1 and not any(each["holm"] < 1 - level for each in one["contrasts"]):
        said += " None of these changes stands after correction."
    return f"A{said[1:]}" if said.startswith("all ") else said


def sides(rows: Sequence[dict[str, Any]], metric: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows whose interval of the change in `metric` lies above 0, below it, and the others."""
    changes = [(row, row["metrics"][metric]["change"]) for row in rows]
    raised = [row for row, each in changes if each["low"] > 0]
    lowered = [row for row, each in changes if each["high"] < 0]
    return raised, lowered, [row for row, each in changes if each["low"] <= 0 <= each["high"]]


def _ranked(one: dict[str, Any], level: float) -> list[tuple[str, str]]:
    metric = one["ranked_by"]
    label = next(row["metrics"][metric]["label"] for row in one["rows"])
    less = one["about"].get(metric, {}).get("larger_is_better") is False
    facts = [("Ranked by", f"{metric} ({label}{'; less is better' if less else ''}), which none of them was trained on.")]
    firm = [each for each in one["contrasts"] if each["holm"] < 1 - level]
    count = len(one["contrasts"])
    said = f"Of {count} differences between methods, or from the reference, " if count > 1 else "The one difference from the reference "
    if count == 1:
        facts.append(("After correction", said + ("stands." if firm else "does not stand out.")))
    elif not firm:
        facts.append(("After correction", said + "none stands after Holm's correction for their number."))
    else:
        named = listed([f"{each['a']} less {each['b']}" for each in firm])
        which = f": {named}" if len(firm) <= NAMED and len(named) <= 2 * LETTERS else ""
        facts.append(("After correction", f"{said}{len(firm)} stand{'s' if len(firm) == 1 else ''} after Holm's correction{which}."))
    return facts


def _all(rows: Sequence[dict[str, Any]]) -> str:
    """How many methods, and how many settings of them where there are more."""
    methods = len({row["method"] for row in rows})
    said = f"{methods} method{'' if methods == 1 else 's'}"
    return said if methods == len(rows) else f"{said} in {len(rows)} settings"


def _some(group: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    if len(group) == len(rows) and len(rows) > 1:
        return f"all {len(rows)} {_kind(rows)}"
    return _named([row["label"] for row in group], rows)


def _named(labels: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    names = listed(labels)
    return names if len(labels) <= NAMED and len(names) <= LETTERS else f"{len(labels)} of {len(rows)} {_kind(rows)}"


def _kind(rows: Sequence[dict[str, Any]]) -> str:
    return "methods" if len({row["method"] for row in rows}) == len(rows) else "settings"
