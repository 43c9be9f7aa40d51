"""`alignbench report FOLDER ...`: the page of many runs, or a single run's own page once more, from what is in their folders alone."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignbench.config import ConfigError
from alignbench.report.comparison_page import Claim, page
from alignbench.report.page import render
from alignbench.table import DEFAULTS, Found, asked, comparison, files, save


def report(words: list[str]) -> int:
    """Write report.html: of one run into its folder, of several with the table's files to `to`. Raises ConfigError, MissingAsset."""
    folders, given = asked("report", words)
    if len(folders) == 1 and (folders[0] / "run.json").is_file():
        return _own(folders[0], given)
    found, made = comparison("report", folders, given)
    to = Path(given["to"]) if given["to"] else folders[0] / "report"
    try:
        write(found, made, to)
    except ValueError as error:
        raise ConfigError(f"report: {error}") from error
    print(to / "report.html")
    print("beside it: table.md, table.tex, table.csv, table.png and, with every digit, table.json", file=sys.stderr)
    return 0


def write(
    found: Sequence[Found],
    made: dict[str, Any],
    to: Path,
    *,
    title: str = "",
    intro: str = "",
    claims: Sequence[Claim] = (),
    machine: bool = True,
) -> None:
    """report.html and the table's files, in the folder `to`. Raises MissingAsset where it cannot be written.

    found, made: the runs, and what `table.compared` makes of them; title, intro: plain text, with empty lines between paragraphs;
    claims: what is said, and what these runs say of it; machine: whether hardware, versions and times are shown, which differ between
    machines.
    """
    text = page(made, [each.folder for each in found], title=title, intro=intro, claims=claims, machine=machine)
    save("report", to, {"report.html": text.encode(), **files(made)})


def _own(folder: Path, given: dict[str, str]) -> int:
    if changed := [key for key, value in given.items() if value != DEFAULTS[key]]:
        raise ConfigError(
            f"report: {changed[0]}={given[changed[0]]}: {folder} is one run, whose own page takes no settings; give two or more"
        )
    try:
        render(folder)
    except ValueError as error:
        raise ConfigError(f"report: {error}") from error
    print(folder / "report.html")
    return 0
