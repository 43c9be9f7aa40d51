"""`alignbench status [FOLDER]`: the ledger as a table, with progress and time left; on a terminal it is drawn again until all is over."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignbench import ledger
from alignbench.config import ConfigError
from alignbench.report.record import Record
from alignbench.sweep import duration

USAGE = "alignbench status [FOLDER]: the folder that holds run folders, `outputs` if none is named"
COLOURS = {"done": "green", "running": "bold", "queued": "cyan", "planned": "dim", "failed": "red", "interrupted": "yellow"}
EVERY = 2.0  # seconds between two drawings


def status(words: list[str]) -> int:
    if len(words) > 1:
        raise ConfigError(f"status: {' '.join(words)}: one folder; {USAGE}")
    root = Path(words[0] if words else "outputs")
    if not ledger.path_of(root).is_file():
        raise ConfigError(f"status: {root}: no ledger there; every run and sweep with output={root} writes one ({USAGE})")
    console = Console()
    if not console.is_terminal:
        console.width = 160
        console.print(drawn(root))
        return 0
    with Live(drawn(root), console=console, auto_refresh=False) as live:
        while any(row["state"] == "running" for row in rows_of(root)):
            time.sleep(EVERY)
            live.update(drawn(root), refresh=True)
    return 0


def rows_of(root: Path, now: float | None = None) -> list[dict[str, Any]]:
    """What is known of each job: name, state, epoch and epochs, seconds that it took or has taken, seconds left, starts, reason."""
    now = time.time() if now is None else now
    found = []
    for entry in ledger.read(root).values():
        state = entry.state
        if ledger.taken(root, entry.hash):
            state = "running"
        elif state in ("started", "preempted"):
            state = "interrupted"
        epoch, epochs = progress(root / entry.name)
        row: dict[str, Any] = {"name": entry.name, "state": state, "epoch": epoch, "epochs": epochs, "starts": entry.starts}
        row |= {"seconds": entry.seconds, "left": None, "reason": entry.reason if state in ("failed", "interrupted") else ""}
        if state == "running" and (began := [each for each in entry.events if each["event"] == "started"]):
            row["seconds"] = now - began[-1]["time"]
            gained = epoch - began[-1].get("epoch", 0)
            if gained > 0 and epochs:
                row["left"] = row["seconds"] / gained * (epochs - epoch)
        found.append(row)
    return found


def progress(folder: Path) -> tuple[int, int]:
    """Epochs that are behind a run, and all; 0, 0 where it has none yet."""
    try:
        epochs = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["epochs"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return 0, 0
    return Record(folder).epoch, epochs


def drawn(root: Path) -> Group:
    rows = rows_of(root)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("job", "state", "epochs", "time", "left", "starts", ""):
        table.add_column(column, justify="right" if column in ("epochs", "time", "left", "starts") else "left", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            f"[{COLOURS[row['state']]}]{row['state']}[/]",
            f"{row['epoch']}/{row['epochs']}" if row["epochs"] else "",
            duration(row["seconds"]) if row["seconds"] is not None else "",
            duration(row["left"]) if row["left"] is not None else "",
            str(row["starts"]),
            row["reason"].replace("[", "\\["),
        )
    return Group(Text(said(rows), "bold"), Text(str(root), "dim", overflow="fold"), table)


def said(rows: list[dict[str, Any]]) -> str:
    """How many are in which state and, where some have told how long they take, how long the rest will."""
    counted = Counter(row["state"] for row in rows)
    text = ", ".join(f"{counted[state]} {state}" for state in COLOURS if counted[state])
    took = [row["seconds"] for row in rows if row["state"] == "done" and row["seconds"]]
    running = counted["running"]
    if took and running:
        mean = sum(took) / len(took)
        todo = (counted["planned"] + counted["queued"]) * mean + sum(
            mean if row["left"] is None else row["left"] for row in rows if row["state"] == "running"
        )
        text += f"; about {duration(todo / running)} left"
    return text
