"""What a tracker is: a place beside the run's folder that is told of a run while it goes on. Nothing that it does changes the run."""

import importlib
from pathlib import Path
from typing import Any, Literal

from alignbench.config import MissingAsset

State = Literal["done", "failed", "stopped"]


class Tracker:
    """Called through guarded.Guarded only: in one thread, in this order, each call after the one before it, and it may raise.

    folder: of its own, for what it writes on this machine; patience: seconds that a run which has ended waits for it.
    """

    folder: Path
    patience: float

    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        """run: what run.json says of it, and its folder's `name`; run["hash"][:10] is its id, under which a resumed run goes on."""

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl: `epoch`, `split` and numbers; at the end one of the test split."""

    def picture(self, path: Path) -> None:
        """The grid of the run's pictures, a PNG."""

    def end(self, state: State) -> None:
        """Nothing is called after it."""


def library(name: str) -> Any:
    """The module that a tracker needs, imported before training begins. Raises MissingAsset where it is not there or does not start."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({' '.join(str(error).split())})"
        raise MissingAsset(f"tracker: {name} {why}; pip install 'alignbench[trackers]', or choose tracker=none") from error


def values(row: dict[str, Any]) -> dict[str, float]:
    """A row's numbers as trackers name them: `validation/reward`."""
    return {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("epoch", "split") and value is not None}
