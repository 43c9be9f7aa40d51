"""What the README shows works: its program, and the choices in its commands."""

import re
import shlex
from pathlib import Path

import pytest

from alignbench.__main__ import VERBS
from alignbench.compose import compose, sweep
from alignbench.config import choices, conf_folder
from alignbench.knobs import split

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if re.match(r"(python -m )?alignbench\b", line)]


def test_the_three_line_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from_pretrained" in block]
    assert len(program.strip().splitlines()) == 3
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert (tmp_path / "circle.png").stat().st_size > 200


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    words = shlex.split(command.removeprefix("python -m ").replace("<run>", "run"))[1:]
    flags = {word for word in words if word.startswith("-")}
    overrides = [word for word in words if word not in flags]
    if overrides and "=" not in overrides[0]:
        assert overrides[0] in VERBS
    elif flags <= {"-m", "--cfg"}:
        if any(word.startswith("hparams_search") for word in overrides):
            overrides = split(overrides)[2]
        for job in sweep(overrides):
            compose(job)
    else:
        assert flags == {"--help"}


@pytest.mark.parametrize("command", re.findall(r"`(method=[^`]*)`", README))
def test_every_row_of_the_methods_table_composes(command: str) -> None:
    compose(shlex.split(command.replace("<labels>", "labels")))


def test_every_method_is_in_the_table() -> None:
    missing = [name for name in choices("method", conf_folder()) if not re.search(rf"\b{name}\b", README)]
    assert not missing


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 8
