"""What docs/ shows works: its method is one, its commands compose, its paths exist, and it names every preset and every metric."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignbench.__main__ import VERBS
from alignbench.check import read_choice
from alignbench.compose import compose, sweep
from alignbench.config import choices, conf_folder
from alignbench.knobs import split

ROOT = Path(__file__).parents[1]
WALK = ROOT / "docs" / "add_a_method.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))
INDEX = ROOT / "docs" / "methods" / "README.md"
CODE = sorted((ROOT / "src" / "alignbench" / "methods").glob("*.py"))

BLOCKS = dict(re.findall(r"^`([\w./@-]+)`:\n\n```(?:python|yaml)\n(.*?)^```$", WALK.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
"""The walk-through's files: where each goes, and its text."""


def commands(page: Path) -> list[str]:
    """What a page has the reader type to run or compose something."""
    lines = [line.split(" #")[0].strip() for line in page.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.startswith("python -m alignbench ")]


def composed(command: str) -> list[str] | None:
    """The overrides of a command that composes; None where it is a verb."""
    words = [word for word in shlex.split(command)[3:] if word not in ("--cfg", "-m", "--retry")]
    return words if "=" in words[0] else None


def logged(tree: ast.AST) -> set[str]:
    """The names in what a module's `loss`, `collect` and `*_metrics` log: dicts of metrics, and what is added to them."""
    names: set[str] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or not (function.name in ("loss", "collect") or function.name.endswith("_metrics")):
            continue
        looked_up = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Subscript)}
        for node in ast.walk(function):
            if isinstance(node, ast.Dict) and id(node) not in looked_up:
                names |= {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "metrics":
                names |= {ast.literal_eval(node.slice)}
    return names


def shared(path: Path, tree: ast.AST) -> set[str]:
    """With the metrics that the module takes from objectives."""
    objectives = ast.parse((path.parents[1] / "objectives.py").read_text(encoding="utf-8"))
    return logged(tree) | (logged(objectives) if "preference_metrics" in ast.unparse(tree) else set())


LOGGED = {path.stem: shared(path, ast.parse(path.read_text(encoding="utf-8"))) for path in CODE}


def test_the_readers_of_pages_and_sources_find_something() -> None:
    assert set(BLOCKS) == {"src/alignbench/methods/raft.py", "conf/method/raft.yaml", "tests/test_raft.py"}
    assert len(WALK.read_text(encoding="utf-8").split("```")) // 2 == len(BLOCKS) + 1  # each is a file, but the commands
    assert LOGGED["d3po"] == {"margin", "accuracy", "clipped", "reward", "decided"}
    assert LOGGED["di_star"] == {"critic_loss", "score_gap", "reward"}  # not the keys of a look-up table
    assert LOGGED["kl_rlhf"] >= {"value_loss", "step_kl", "eps_gap", "log_ratio"}
    assert len(METHODS) >= 8
    assert sum(len(commands(page)) for page in PAGES) >= 20


def test_the_example_is_no_method_yet() -> None:
    assert not any((ROOT / path).exists() for path in BLOCKS)


# --- the presets, metrics, paths and commands


@pytest.mark.parametrize("preset", choices("method", conf_folder()))
def test_every_preset_is_in_the_index_and_on_one_page(preset: str) -> None:
    pages = [page for page in METHODS if f"`{preset}`" in page.read_text(encoding="utf-8")]
    assert INDEX in pages
    assert len(pages) > 1


@pytest.mark.parametrize("name", sorted(set().union(*LOGGED.values()) | {"loss"}))
def test_every_metric_is_explained(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("method", [name for name, names in LOGGED.items() if names])
def test_every_metric_is_on_its_methods_page(method: str) -> None:
    (page,) = [page for page in METHODS if page != INDEX and f"[{method}.py]" in page.read_text(encoding="utf-8")]
    said = page.read_text(encoding="utf-8")
    assert [name for name in LOGGED[method] if f"`{name}`" not in said] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: not there"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, f"{target}: no such heading"
    for path in re.findall(r"`((?:src|conf|tests|docs|experiments|\.ci)/[\w./@-]+)`", text):
        if path not in BLOCKS and "my_method" not in path:
            assert (ROOT / path).exists(), f"{path}: not there"


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(page, each, id=f"{page.stem}: {each[20:]}") for page in PAGES if page != WALK for each in commands(page)],
)
def test_every_command_composes(page: Path, command: str) -> None:
    overrides = composed(command)
    if overrides is None:
        assert shlex.split(command)[3] in VERBS
    elif "-m" in shlex.split(command):
        if any(word.startswith("hparams_search") for word in overrides):
            overrides = split(overrides)[2]
        for job in sweep(overrides):
            compose(job)
    else:
        for job in sweep(overrides) if "-m" in shlex.split(command)[3:] else [overrides]:
            compose(job)


# --- the walk-through, in a copy of the repository with its files in it


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for part in ("src/alignbench", "conf"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in ("conftest.py", "linear_gaussian.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    for path, text in BLOCKS.items():
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def python(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in the copy, which comes before the installed package."""
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False)


def test_the_example_compiles_and_is_one_to_follow() -> None:
    for path, text in BLOCKS.items():
        if path.endswith(".py"):
            assert ast.get_docstring(ast.parse(text))
            assert max(map(len, text.splitlines())) <= 140
        else:
            numbers = [line for line in text.splitlines() if re.search(r": .*\d", line) and not line.startswith("#")]
            assert all("# " in line for line in numbers), "every number has its source"
            assert yaml.safe_load(text)["_target_"].startswith("alignbench.methods.")
    (python_file,) = [ast.parse(text) for path, text in BLOCKS.items() if path.startswith("src")]
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in logged(python_file) if f"| `{name}` |" not in explained] == []


def test_the_examples_commands_compose_in_the_copy(copy: Path) -> None:
    """With the check that its YAML has the constructor's keys and ranges, and a number that is refused."""
    wanted = [words for command in commands(WALK) if (words := composed(command)) is not None]
    assert len(wanted) >= 3
    code = "import sys; from alignbench.compose import compose; [compose(line.split()) for line in sys.stdin.read().splitlines()]"
    environment = os.environ | {"PYTHONPATH": str(copy / "src")}
    for lines, fine in ((wanted, True), ([[*wanted[0], "method.images_per_prompt=1"]], False)):
        given = "\n".join(" ".join(words) for words in lines)
        done = subprocess.run([sys.executable, "-c", code], input=given, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is fine, done.stderr
    assert "images_per_prompt" in done.stderr


def test_the_example_is_listed_in_the_copy(copy: Path) -> None:
    listed = python(copy, "-m", "alignbench", "ls", "methods").stdout
    (line,) = [line for line in listed.splitlines() if line.split()[:1] == ["raft"]]
    assert "RAFT: " in line


@pytest.mark.slow
def test_the_example_is_proven_and_runs_in_the_copy(copy: Path) -> None:
    proven = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_raft.py")
    assert proven.returncode == 0, proven.stdout
    (small,) = [words for command in commands(WALK) if (words := composed(command)) and "eval=quick" in words]
    run = python(copy, "-m", "alignbench", *small, "model=sandbox", "output=outputs", "trainer.threads=1")
    assert run.returncode == 0, run.stderr
    (folder,) = (each.parent for each in (copy / "outputs").glob("*/result.json"))
    assert (folder / "result.json").is_file()
    assert (folder / "report.html").is_file()
    assert "log_ratio" in (folder / "metrics.jsonl").read_text(encoding="utf-8")


def test_the_page_of_models_has_every_model_with_its_terms() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    for choice in choices("model", conf_folder()):
        facts = read_choice("model", choice, conf_folder())
        if not facts["download_gb"]:
            assert f"`{choice}`" in text
            continue
        cells = rows.pop(choice).split(" | ")
        assert cells[0] == facts["path"]
        assert cells[1] == (f"`{facts['init']}`" if facts["init"] else "its own")
        assert cells[2] == facts["schedule"].get("prediction_type", "velocity")
        assert cells[3:5] == [", ".join(facts["tracks"]), f"{facts['download_gb']:g}"]
        assert cells[5] == facts["licence"] + ("; gated" if facts["gated"] else "")
    assert not rows
