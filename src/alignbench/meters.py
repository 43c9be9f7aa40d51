"""The budget meters: what training has spent so far, counted where it is spent so that no method can forget it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from alignbench import ranks


class Meters:
    """Reward queries and network evaluations of training; what runs inside `paused()` (evaluation, the plan's probe) counts nothing.

    A reward query is one image newly shown to the judge. A network evaluation is one sample through one denoiser, by role; a guided one
    counts 2, and its backward pass twice as much again. Processes that share a run do equal parts, so each counts for all.
    """

    def __init__(self) -> None:
        self.reward_queries = 0
        self.network_evaluations: Counter[str] = Counter()
        self.images_unscored = 0  # that a judge gave no score for, in training
        self._paused = False

    def query(self, images: int) -> None:
        if not self._paused:
            self.reward_queries += images * ranks.world()

    def unscored(self, images: int) -> None:
        if not self._paused:
            self.images_unscored += images

    def evaluate(self, role: str, samples: int, backward: bool) -> None:
        if not self._paused:
            self.network_evaluations[role] += samples * (3 if backward else 1) * ranks.world()

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def state(self) -> dict[str, object]:
        unscored = {"images_unscored": self.images_unscored} if self.images_unscored else {}
        return {"reward_queries": self.reward_queries, "network_evaluations": dict(self.network_evaluations), **unscored}

    def load(self, state: dict) -> None:
        self.reward_queries = state["reward_queries"]
        self.network_evaluations = Counter(state["network_evaluations"])
        self.images_unscored = state.get("images_unscored", 0)
