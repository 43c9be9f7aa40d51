"""What watches a training run: history of metrics, checkpoints, what ends it early, the progress line. None changes an update."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from alignbench import ranks
from alignbench.checkpoint import AtomicCheckpointIO, of_peak, previous
from alignbench.meters import Meters
from alignbench.signals import arm

Row = dict[str, Any]


class History(Callback):
    """One row an epoch of training, and one a validation; the full history lives in the checkpoint, so a resumed run repeats no row."""

    def __init__(
        self,
        meters: Meters,
        learned: Callable[[], dict[str, float]],
        validate: Callable[[], tuple[dict[str, float], list[Row]]],
        every: int,
        write: Callable[[list[Row]], None],
    ):
        """learned: what the method says of its last epoch; validate: scores the policy on validation prompts, `every` so many epochs
        (0: never), and gives the means and a row an image; write: stores all rows but those of images."""
        self.meters, self.learned, self.validate, self.every, self.write = meters, learned, validate, every, write
        self.rows: list[Row] = []
        self.images: list[Row] = []  # of every validation, with its epoch

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        if not self.rows and self.every:
            self._validate(0)

    def on_train_epoch_end(self, trainer: Trainer, method: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        self._add("train", epoch, self.learned())
        if self.every and (epoch % self.every == 0 or epoch == trainer.max_epochs or trainer.should_stop):
            self._validate(epoch)

    def _validate(self, epoch: int) -> None:
        means, images = self.validate()
        self.images += [{"epoch": epoch, **row} for row in images]
        self._add("validation", epoch, means)

    def _add(self, split: str, epoch: int, values: dict[str, float]) -> None:
        spent = {"reward_queries": self.meters.reward_queries, "network_evaluations": self.meters.network_evaluations.total()}
        if self.meters.images_unscored:
            spent["images_unscored"] = self.meters.images_unscored
        there = {name: value for name, value in values.items() if value == value}  # a mean of no images is left out
        self.rows.append({"epoch": epoch, "split": split, **spent, **there})
        if ranks.rank() == 0:
            self.write(self.rows)

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return max((row["epoch"] for row in self.rows), default=0)

    def latest(self, split: str) -> Row | None:
        return next((row for row in reversed(self.rows) if row["split"] == split), None)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.images = state["rows"], state["images"]


def standing(images: list[Row], judges: list[str]) -> dict[int, float]:
    """How good each validated epoch is, by epoch: the mean over judges of (its mean - the start's mean) / the start's spread over images.

    images: rows of validations, epoch 0's among them. Empty where no judge tells the start's images apart.
    """
    gains: dict[int, list[float]] = {}
    for judge in judges:
        scores: dict[int, list[float]] = {}
        for row in images:
            if row[judge] is not None:
                scores.setdefault(row["epoch"], []).append(row[judge])
        spread = pstdev(scores[0]) if scores.get(0) else 0.0
        for epoch, own in scores.items() if spread > 0 else ():
            gains.setdefault(epoch, []).append((fmean(own) - fmean(scores[0])) / spread)
    return {epoch: fmean(own) for epoch, own in sorted(gains.items())}


class Peak(Checkpoint):
    """Keeps the weights of the best validation so far by `standing`, and may end training where none has been better for a while."""

    def __init__(self, folder: Path, io: AtomicCheckpointIO, history: History, judges: list[str], patience: int | None):
        """judges: who is asked; none: no peak is kept. patience: validations without a new peak after which training ends; None: never."""
        self.folder, self.io, self.history, self.judges, self.patience = folder, io, history, judges, patience

    @property
    def epoch(self) -> int | None:
        """The first of the best validated epochs; None where there is none to choose from."""
        there = standing(self.history.images, self.judges)
        return max(there, key=lambda epoch: there[epoch]) if there else None

    def path(self, epoch: int) -> Path:
        return of_peak(self.folder, epoch)

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        self._check(trainer)  # a run that was killed after its last epoch goes no further

    def on_train_epoch_end(self, trainer: Trainer, method: LightningModule) -> None:
        if self.epoch == trainer.current_epoch + 1:
            if trainer.is_global_zero:
                self._keep(trainer.current_epoch + 1, method)
            trainer.strategy.barrier()
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        best, validated = self.epoch, [row["epoch"] for row in self.history.rows if row["split"] == "validation"]
        if self.patience is not None and best is not None and len(validated) - 1 - validated.index(best) >= self.patience:
            trainer.should_stop = True

    def _keep(self, epoch: int, method: LightningModule) -> None:
        """A file an epoch, and the one before it kept: a killed run goes on from a checkpoint that may still name that one."""
        for older in sorted(self.folder.glob("peak-*.ckpt"))[:-1]:
            self.io.remove_checkpoint(older)
        checkpoint: dict[str, Any] = {"state_dict": method.state_dict()}
        method.on_save_checkpoint(checkpoint)
        self.io.save_checkpoint(checkpoint, self.path(epoch))
        previous(self.path(epoch)).unlink(missing_ok=True)  # an earlier process's, of the same epoch


class Saver(Checkpoint):
    """A checkpoint after every epoch, through the trainer's CheckpointIO. Lightning runs `Checkpoint` callbacks last."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        arm()  # Lightning has taken SIGTERM for itself by now, and would end the run with exit code 0

    def on_train_epoch_end(self, trainer: Trainer, method: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class BudgetStop(Callback):
    """Ends training after the first epoch that reached a limit. Seconds are those of training, over all processes that continued it."""

    def __init__(self, meters: Meters, *, reward_queries: int | None, network_evaluations: int | None, device_seconds: float | None):
        self.meters = meters
        self.limits = {"reward_queries": reward_queries, "network_evaluations": network_evaluations, "device_seconds": device_seconds}
        self.started, self.before = time.monotonic(), 0.0  # seconds: since then, and in earlier processes of this run

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.before + time.monotonic() - self.started} if self.limits["device_seconds"] is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state.get("seconds", 0.0)

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        self.started = time.monotonic()
        self._check(trainer)  # a run that was killed after its last epoch goes no further

    def on_train_epoch_end(self, trainer: Trainer, method: LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        spent = {
            "reward_queries": self.meters.reward_queries,
            "network_evaluations": self.meters.network_evaluations.total(),
            "device_seconds": self.before + time.monotonic() - self.started,
        }
        reached = any(limit is not None and spent[name] >= limit for name, limit in self.limits.items())
        if trainer.strategy.reduce_boolean_decision(reached, all=False):  # clocks differ: all processes stop together
            trainer.should_stop = True


class Progress(Callback):
    """A bar with reward and KL on a terminal, a plain line an epoch elsewhere."""

    def __init__(self, history: History, say: Callable[[str], None], terminal: bool):
        self.history, self.say, self.terminal = history, say, terminal
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        self.started, self.first = time.monotonic(), trainer.current_epoch
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=trainer.max_epochs, completed=trainer.current_epoch, figures=self._figures())
            self.bar.start()

    def on_train_epoch_end(self, trainer: Trainer, method: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if self.bar is not None:
            self.bar.update(self.task, completed=epoch, figures=self._figures())
            return
        left = (time.monotonic() - self.started) / (epoch - self.first) * ((trainer.max_epochs or epoch) - epoch)
        self.say(f"epoch {epoch}/{trainer.max_epochs}  {self._figures()}  {left:.0f} s left")

    def on_train_end(self, trainer: Trainer, method: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, method: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _figures(self) -> str:
        reward, scored = self.history.latest("train"), self.history.latest("validation")
        figures = [f"reward {reward['reward']:.3f}"] if reward and "reward" in reward else []
        if scored and "reward" in scored:
            kl = f", kl {scored['kl']:.3f}" if "kl" in scored else ""
            figures.append(f"(validation at {scored['epoch']}: reward {scored['reward']:.3f}{kl})")
        return "  ".join(figures)
