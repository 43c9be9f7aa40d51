"""TensorBoard: event files, written by torch.utils.tensorboard. A resumed run adds a file to its folder, which the page shows as one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignbench.ranges import Positive, Text
from alignbench.trackers.base import State, Tracker, library, values


class TensorBoard(Tracker):
    def __init__(self, *, project: Text, folder: Text, patience: Positive):
        """Raises MissingAsset where tensorboard is not installed."""
        self.project, self.folder, self.patience = project, Path(folder), patience
        library("tensorboard")
        self.library = library("torch.utils.tensorboard")

    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        self.writer = self.library.SummaryWriter(self.folder / self.project / run["name"])
        self.writer.add_text("run", f"```\n{json.dumps({'run': run, 'config': config}, indent=1)}\n```")
        self.epoch = 0

    def log(self, row: dict[str, Any]) -> None:
        self.epoch = row["epoch"]
        for name, value in values(row).items():
            self.writer.add_scalar(name, value, self.epoch)
        self.writer.flush()

    def picture(self, path: Path) -> None:
        with Image.open(path) as picture:
            self.writer.add_image("grid", np.asarray(picture.convert("RGB")), self.epoch, dataformats="HWC")

    def end(self, state: State) -> None:
        self.writer.add_text("state", state)
        self.writer.close()
