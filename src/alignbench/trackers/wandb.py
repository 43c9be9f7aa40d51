"""Weights & Biases: on its server, or offline in a folder that `wandb sync` sends later."""

from pathlib import Path
from typing import Any, Literal

from alignbench.ranges import Positive, Text
from alignbench.trackers.base import State, Tracker, library, values


class WandB(Tracker):
    def __init__(
        self,
        *,
        project: Text,
        entity: Text | None,
        group: Text | None,
        mode: Literal["offline", "online"],
        folder: Text,
        patience: Positive,
    ):
        """entity: the account, None: the user's own; group: None: runs that differ in nothing but the seed are one.

        Raises MissingAsset where wandb is not installed.
        """
        self.project, self.entity, self.group, self.mode = project, entity, group, mode
        self.folder, self.patience = Path(folder), patience
        self.library = library("wandb")

    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # else it writes elsewhere
        self.run = self.library.init(
            project=self.project,
            entity=self.entity,
            group=self.group or run["cell"][:10],
            id=run["hash"][:10],
            name=run["name"],
            resume="allow",
            mode=self.mode,
            dir=str(self.folder),
            config={"run": run, **config},
            settings=self.library.Settings(silent=True, console="off", save_code=False),  # nothing of this process but what it is told
        )
        self.epoch = 0

    def log(self, row: dict[str, Any]) -> None:
        self.epoch = row["epoch"]
        self.run.log(values(row), step=self.epoch)

    def picture(self, path: Path) -> None:
        self.run.log({"grid": self.library.Image(str(path))}, step=self.epoch)

    def end(self, state: State) -> None:
        self.run.summary["state"] = state
        self.run.finish(exit_code=int(state == "failed"))
