"""No tracker: the run's folder has it all."""

from pathlib import Path

from alignbench.trackers.base import Tracker


class Nowhere(Tracker):
    folder, patience = Path(), 0.0
