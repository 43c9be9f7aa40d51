"""MLflow: a server, or a local SQLite file that `mlflow ui` opens. Its client alone: other functions keep a run a thread."""

from pathlib import Path
from typing import Any

from alignbench.ranges import Positive, Text
from alignbench.trackers.base import State, Tracker, library, values

STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
LONGEST = 500  # characters of a parameter that every store takes


class MLflow(Tracker):
    def __init__(self, *, uri: Text, experiment: Text, folder: Text, patience: Positive):
        """uri: of the server or the store. Raises MissingAsset where mlflow is not installed."""
        self.uri, self.experiment, self.folder, self.patience = uri, experiment, Path(folder), patience
        self.library = library("mlflow.tracking")

    def begin(self, run: dict[str, Any], config: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.client = self.library.MlflowClient(tracking_uri=self.uri)
        known = self.client.get_experiment_by_name(self.experiment)
        place = (self.folder / "artifacts").resolve().as_uri() if self.uri.startswith("sqlite:") else None
        experiment = known.experiment_id if known else self.client.create_experiment(self.experiment, artifact_location=place)
        there = self.client.search_runs([experiment], f"tags.alignbench = '{run['hash'][:10]}'")
        if there:
            self.id = there[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(experiment, run_name=run["name"], tags={"alignbench": run["hash"][:10]}).info.run_id
        for name, value in {**_flat("run", run), **_flat("", config)}.items():
            self.client.log_param(self.id, name, str(value)[:LONGEST])

    def log(self, row: dict[str, Any]) -> None:
        for name, value in values(row).items():
            self.client.log_metric(self.id, name, value, step=row["epoch"])

    def picture(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def end(self, state: State) -> None:
        self.client.set_terminated(self.id, STATUS[state])


def _flat(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for each, item in value.items() for name, leaf in _flat(f"{key}.{each}".lstrip("."), item).items()}
    return {key: value}
