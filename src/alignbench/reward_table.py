"""`alignbench ls rewards`: what each judge is and needs, read from its class's source: no weights, no torch."""

from pathlib import Path

from alignbench.check import read_choice
from alignbench.signatures import fact_of

COLUMNS = ("choice", "differentiable", "spatial", "grouped", "size", "backbone", "licence", "trained on")
WIDEST = 46  # characters of a cell that says something in words


def reward_table(there: dict[str, str], conf: Path) -> list[str]:
    """there: choices with the line that says what each is, which follows the table's row."""
    rows = [COLUMNS, *(_row(choice, conf) for choice in there)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    table = ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    width = max(map(len, there), default=0)
    return [*table, "", *(f"  {choice:<{width}}  {line}" for choice, line in there.items())]


def _row(choice: str, conf: Path) -> tuple[str, ...]:
    target = read_choice("reward", choice, conf).get("_target_", "")
    size = fact_of(target, "size_gb")
    return (
        choice,
        *("yes" if fact_of(target, name) else "-" for name in ("differentiable", "spatial", "grouped")),
        f"{size:g} GB" if size else "-",
        *(_short(_words(fact_of(target, name)) or "-") for name in ("backbones", "licence", "datasets")),
    )


def _words(fact: str | tuple[str, ...] | None) -> str:
    """None: the judge elsewhere says it, or nobody does."""
    return "unknown" if fact is None else fact if isinstance(fact, str) else " + ".join(fact)


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
