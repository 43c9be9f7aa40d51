"""Arrows point down: who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "alignbench"
LEAVES = {
    "config",
    "ranges",
    "rng",
    "meters",
    "gaussian",
    "tables",
    "schedule",
    "ranks",
    "beside",
    "objectives",
    "signals",
    "labels",
    "weights",
    "hub",
    "identity",
    "ledger",
}  # of all; they know only each other
TOP = {
    *("__main__", "compose", "check", "signatures", "run", "experiment", "label", "doctor", "assets", "machine", "export", "students"),
    *("probe", "serve", "scoring", "reward_table", "parity", "table", "remembered", "reevaluate", "subjects"),
    *("sweep", "status", "reporting", "compare", "search", "knobs", "winners"),
    *("reproduce", "reproduction", "papers", "shortage"),
}
ROWS: list[set[str]] = [  # a row may import the rows below it and, within itself, only its own folder
    {"worlds", "launchers"},
    {"models", "samplers", "rewards", "datasets", "features", "trackers"},
    {"policy", "rollouts", "checkpoint"},
    {"methods", "evaluation"},
    TOP,
]
INTERFACES = {("samplers", "alignbench.models.base")}  # a sampler is written against the Diffusion interface
ALLOWED = {
    "hydra": {"__main__", "compose", "experiment", "sweep"},
    "omegaconf": {"__main__", "compose"},
    "lightning": {"methods", "evaluation", "checkpoint", "run", "experiment"},
    "diffusers": {"models", "worlds", "rewards", "features"},
    "transformers": {"models", "worlds", "rewards", "features", "hub", "weights"},
    "peft": {"models"},
    "open_clip": {"rewards"},
    "optuna": {"search"},
    **{library: {"trackers"} for library in ("tensorboard", "wandb", "trackio", "mlflow")},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" if node.module == "alignbench" else str(node.module) for alias in node.names}
    return found


def row(name: str) -> int:
    return next(index for index, names in enumerate(ROWS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    here = room(path)
    for target in imports(path):
        parts = target.split(".")
        if parts[0] != "alignbench" or len(parts) == 1 or parts[1] == "__version__":
            continue
        there = parts[1]
        if there in LEAVES or (there == here and here not in ("methods",)) or (here, target) in INTERFACES:
            continue
        if here == "methods" and target == "alignbench.methods.base":
            continue
        if there == "report":
            assert here in TOP | {"report"}, f"{path}: only the front door writes records and pages"
            continue
        assert here not in LEAVES | {"report"}, f"{path} is a leaf and imports {target}"
        if here in TOP and there in TOP:
            continue
        assert row(there) < row(here), f"{path} imports {target}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for target in imports(path):
        library = target.split(".")[0]
        if library in ALLOWED:
            assert room(path) in ALLOWED[library] or dotted in ALLOWED[library], f"{path} imports {library}"


def test_there_is_no_utils_and_every_file_says_what_it_is() -> None:
    for path in MODULES:
        assert path.stem not in {"utils", "helpers", "misc", "common"}
        if path.read_text().strip():
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path}: its first line says what it is"


@pytest.mark.parametrize(
    "module",
    [
        "alignbench.report.page",
        "alignbench.report.comparison_page",
        "alignbench.report.label_page",
        "alignbench.report.record",
        "alignbench.compose",
        "alignbench.check",
        "alignbench.reproduce",
    ],
)
def test_torch_is_not_imported_by(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
