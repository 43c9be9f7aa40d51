"""Every choice of every group composes, passes the check, says what it is, and names only what is there."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml
from conftest import fitting

from alignbench.compose import compose
from alignbench.config import FACTS, GROUPS, arguments, choices, conf_folder
from alignbench.signatures import constructor_of

CHOICES = [(group, choice) for group in GROUPS for choice in choices(group, conf_folder())]
TARGETS = sorted(
    {
        node["_target_"]
        for file in conf_folder().rglob("*.yaml")
        for node in (yaml.safe_load(file.read_text(encoding="utf-8")),)
        if isinstance(node, dict) and str(node.get("_target_")).startswith("alignbench.")
    }
)


def test_every_group_has_choices() -> None:
    assert {group for group, _ in CHOICES} >= set(GROUPS) - {"experiment"}
    assert {file.parent.name for file in conf_folder().glob("*/*.yaml")} <= set(GROUPS)


@pytest.mark.parametrize("group, choice", [each for each in CHOICES if each[0] != "hparams_search"], ids="=".join)
def test_choice_composes(group: str, choice: str) -> None:
    made = compose(fitting(group, choice))
    assert made.choices[group] == (choice if (group, choice) != ("sampler", "auto") else "ddim")
    assert made.config["epochs"] >= 1 or not made.config["method"].get("trains", True)
    assert "???" not in str(made.config)
    assert "${" not in str(made.config)
    assert "auto" not in (made.config["adapter"], made.config["guidance"], made.choices["sampler"])


@pytest.mark.parametrize("group, choice", CHOICES, ids="=".join)
def test_choice_says_what_it_is(group: str, choice: str) -> None:
    lines = (conf_folder() / group / f"{choice}.yaml").read_text(encoding="utf-8").splitlines()
    if group in ("recipe", "experiment"):
        assert lines.pop(0) == "# @package _global_"  # Hydra reads a header from the first line only
    assert lines[0].startswith("# ")
    assert len(choices(group, conf_folder())[choice]) > 5


def test_facts_are_no_arguments() -> None:
    made = compose([])
    for group in FACTS:
        left = arguments(group, made.config[group])
        assert "_target_" in left
        assert len(left) < len(made.config[group])


@pytest.mark.parametrize("target", TARGETS)
def test_sources_are_read_as_python_reads_them(target: str) -> None:
    """The arguments that the check reads from the source are those of the imported class."""
    module, _, name = target.rpartition(".")
    parameters: dict[str, inspect.Parameter] = {}
    for each in reversed(getattr(importlib.import_module(module), name).__mro__):
        if each.__module__.startswith("alignbench.") and "__init__" in vars(each):
            own = dict(inspect.signature(each.__init__).parameters)
            own.pop("self")
            keeps = any(one.kind == one.VAR_KEYWORD for one in own.values())
            parameters = (parameters if keeps else {}) | {key: one for key, one in own.items() if one.kind != one.VAR_KEYWORD}
    read = constructor_of(target)
    assert set(read) == set(parameters)
    assert {key for key, one in read.items() if one.required} <= {key for key, one in parameters.items() if one.default is one.empty}


def test_targets_were_found() -> None:
    assert "alignbench.methods.ddpo.DDPO" in TARGETS
    assert len(TARGETS) >= 8


def test_config_folder_is_the_repository_s() -> None:
    assert (conf_folder() / "config.yaml").is_file()
    assert conf_folder() == Path(__file__).resolve().parents[1] / "conf"
