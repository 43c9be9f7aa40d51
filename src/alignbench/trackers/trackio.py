"""Trackio: a local database that `trackio show` opens as a page."""

import os
from pathlib import Path
from typing import Any

from alignbench.ranges import Positive, Text
from alignbench.trackers.base import State, Tracker, library, values


class Trackio(Tracker):
    def __init__(self, *, project: Text, group: Text | None, folder: Text, patience: Positive):
        """group: None: runs that differ in nothing but the seed are one. Raises MissingAsset where trackio is not installed."""
        self.project, self.group, self.folder, self.patience = project, group, Path(folder), patience
        os.environ.setdefault("TRACKIO_DIR", str(self.folder.resolve()))  # which it reads when it is imported
        self.library = library("trackio")

    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        self.run = self.library.init(
            project=self.project,
            name=run["name"],
            group=self.group or run["cell"][:10],
            config={"run": run, **config},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.epoch = 0

    def log(self, row: dict[str, Any]) -> None:
        self.epoch = row["epoch"]
        self.run.log(values(row), step=self.epoch)

    def picture(self, path: Path) -> None:
        self.run.log({"grid": self.library.Image(str(path))}, step=self.epoch)

    def end(self, state: State) -> None:
        self.run.finish()
