"""A search over made-up runs, whose gain is a known function of the knob: what it asks for, what it finds, and what it leaves."""

import csv
import math
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from alignbench import check, search
from alignbench.__main__ import main
from alignbench.compose import compose
from alignbench.config import ConfigError, choices, conf_folder
from alignbench.report.record import Record
from alignbench.sweep import Job

OPTIMUM = {"ddpo": ("method.optimizer.lr", 3e-5), "kl_rlhf": ("method.kl", 0.4)}


def knob(job: Job) -> float:
    node: Any = job.composed.config
    for part in OPTIMUM[job.composed.choices["method"]][0].split("."):
        node = node[part]
    return float(node)


def gain(job: Job) -> float:
    """Best at the optimum, by powers of ten; each seed has its own luck, which cancels over seeds 0, 1 and 2."""
    apart = math.log10(knob(job) / OPTIMUM[job.composed.choices["method"]][1])
    return 0.2 - 0.05 * apart**2 + 0.03 * (job.composed.config["seed"] - 1)


class World:
    """In the place of run_jobs: a run is its validation rows, written once."""

    def __init__(self, fails: Callable[[Job], bool] = lambda job: False, dies_after: int = 10**6):
        self.fails, self.dies_after = fails, dies_after
        self.asked: list[Job] = []
        self.ran: list[str] = []

    def __call__(self, jobs: list[Job], launcher: dict[str, Any], *, retry: bool = False) -> dict[str, str]:
        assert launcher["_target_"] == "alignbench.launchers.local.Local"
        ends = {}
        for job in jobs:
            self.asked.append(job)
            assert not any("hparams_search" in word for word in job.words)
            there = (job.composed.folder / "samples.parquet").is_file()
            if not there and len(self.ran) >= self.dies_after:
                ends[job.composed.hash] = "interrupted"
                continue
            ends[job.composed.hash] = "failed" if self.fails(job) else "done"
            if not there and not self.fails(job):
                self.ran.append(job.composed.hash)
                self.write(job)
        return ends

    def write(self, job: Job) -> None:
        rows = [
            {"who": "policy", "split": split, "epoch": epoch, "exact_judge": 0.5 + k + share * gain(job), "colour": 0.1, "kl": None}
            for split, share in (("validation", 1.0), ("test", -1.0))  # the test rows would choose the worst
            for epoch, share in ((0, 0.0), (2, -share), (4, share))
            for k in (0, 1)
        ]
        record = Record(job.composed.folder)
        record.open(job.composed.identity, {})
        record.samples(rows, {"metrics": [{"name": "colour", "label": "trained"}]})


composed = lru_cache(maxsize=None)(lambda words: compose(list(words)))  # the tests ask for the same runs again and again


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("sweep", "search"):
        monkeypatch.setattr(f"alignbench.{module}.compose", lambda words: composed(tuple(words)))


def words(*more: str) -> list[str]:
    given = ["-m", "hparams_search=knob", "method=ddpo,kl_rlhf", "hparams_search.parallel=3", "hparams_search.trials=7", *more]
    return list({word.partition("=")[0]: word for word in given}.values())


def searched(monkeypatch: pytest.MonkeyPatch, world: World, given: list[str], code: int = 0) -> Path:
    """The search's folder, under the current one."""
    monkeypatch.setattr(search, "run_jobs", world)
    assert main(given) == code
    return max(Path("outputs").glob("searches/*"), key=lambda path: path.stat().st_mtime_ns, default=Path())


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_optimum_of_each_method_is_found_in_as_many_trials(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    folder = searched(monkeypatch, world, words("hparams_search.trials=20"))
    rows = table(folder)
    for method, (key, optimum) in OPTIMUM.items():
        own = [row for row in rows if row["method"] == method]
        assert [int(row["trial"]) for row in own] == list(range(1, 21))
        assert len({row["value"] for row in own}) == 20
        node: Any = yaml.safe_load((folder / f"{method}.yaml").read_text())
        for part in key.split("."):
            node = node[part]
        assert abs(math.log10(node / optimum)) < 0.15  # of three or four powers of ten
        best = max(own, key=lambda row: float(row["gain"]))
        assert float(best["value"]) == node
        assert float(best["gain"]) == pytest.approx(0.2 - 0.05 * math.log10(node / optimum) ** 2 - 0.03, abs=1e-12)
    err = capsys.readouterr().err
    assert "2 methods x 20 trials x 1 seeds: 40 runs, 1120 epochs of training in all" in err
    assert "trial 3 of 20 of ddpo: method.optimizer.lr=" in err
    with Image.open(folder / "trials.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 50


def test_the_winner_is_a_recipe_that_makes_its_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, given = World(), ["hparams_search.trials=4", "epochs=5", "eval=quick", "method.clip=0.5"]
    folder = searched(monkeypatch, world, words(*given, "method=ddpo"))
    text = (folder / "ddpo.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_"
    best = max(table(folder), key=lambda row: float(row["gain"]))
    conf = tmp_path / "conf"
    shutil.copytree(conf_folder(), conf)
    shutil.copy(folder / "ddpo.yaml", conf / "recipe" / "ddpo@sandbox.yaml")
    assert compose(["method=ddpo", "eval=quick"], conf).hash == best["runs"]
    comments = "\n".join(line for line in text if line.startswith("#"))
    assert best["runs"] in comments
    assert "the best of 4 trials (0 failed)" in comments
    assert "seed 0" in comments
    assert (
        "epochs=5 eval=quick hparams_search.parallel=3 hparams_search.trials=4 hparams_search=knob method.clip=0.5 method=ddpo" in comments
    )
    assert choices("recipe", conf)["ddpo@sandbox"].startswith("ddpo on sandbox")


def test_the_same_command_after_a_kill_asks_for_the_same_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed, again, more = World(), World(dies_after=9), World(), World()
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    folder = searched(monkeypatch, whole, words()).resolve()
    monkeypatch.chdir(tmp_path / "killed")
    searched(monkeypatch, killed, words(), code=1)
    other = searched(monkeypatch, again, words())
    assert [job.composed.hash for job in again.asked] == [job.composed.hash for job in whole.asked]
    assert len(killed.ran) == 9
    assert killed.ran + again.ran == whole.ran
    for name in ("trials.csv", "ddpo.yaml", "kl_rlhf.yaml", "trials.png"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    searched(monkeypatch, more, words("hparams_search.trials=9"))
    assert len(more.ran) == 2 * 2  # seven of each are there


@pytest.mark.parametrize("other", ["hparams_search.sampler=random", "hparams_search.seed=1"])
def test_another_sampler_or_seed_asks_for_others(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = World(), World()
    searched(monkeypatch, one, words("method=ddpo"))
    searched(monkeypatch, two, words("method=ddpo", other))
    values = [[knob(job) for job in world.asked] for world in (one, two)]
    assert len(values[0]) == len(values[1])
    assert values[0] != values[1]


def test_tpe_learns_where_random_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials after the first random ones are nearer to the optimum, on average, than a random sampler's."""
    apart = {}
    for sampler in ("tpe", "random"):
        world = World()
        searched(monkeypatch, world, words("method=ddpo", f"hparams_search.sampler={sampler}", "hparams_search.trials=20"))
        apart[sampler] = np.mean([abs(math.log10(knob(job) / 3e-5)) for job in world.asked[8:]])
    assert apart["tpe"] < 0.7 * apart["random"]


def test_a_failed_trial_counts_and_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(fails=lambda job: knob(job) < 2e-5)
    folder = searched(monkeypatch, world, words("method=ddpo"))
    rows = table(folder)
    assert len(rows) == 7
    failed = [row for row in rows if row["state"] == "failed"]
    assert 0 < len(failed) < 7
    assert {row["gain"] for row in failed} == {""}
    assert f"({len(failed)} failed)" in (folder / "ddpo.yaml").read_text()


def test_a_method_of_which_every_trial_failed_has_no_winner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(fails=lambda job: job.composed.choices["method"] == "ddpo")
    folder = searched(monkeypatch, world, words(), code=1)
    assert {path.name for path in folder.iterdir()} == {"trials.csv", "trials.png", "kl_rlhf.yaml"}
    assert "ddpo: every trial failed" in capsys.readouterr().err


def test_a_trial_of_several_seeds_is_their_mean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    folder = searched(monkeypatch, world, words("seed=0,1,2", "hparams_search.trials=3"))
    assert "2 methods x 3 trials x 3 seeds: 18 runs, 504 epochs of training in all" in capsys.readouterr().err
    for row in table(folder):
        own = [job for job in world.asked if job.composed.hash in row["runs"].split()]
        assert [job.composed.config["seed"] for job in own] == [0, 1, 2]
        assert len({job.composed.cell for job in own}) == 1
        assert float(row["gain"]) == pytest.approx(np.mean([gain(job) for job in own]), abs=1e-12)
    assert "mean over seed 0, 1, 2" in (folder / "ddpo.yaml").read_text()


def test_the_trained_reward_and_the_other_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = searched(monkeypatch, World(), words("hparams_search.metric=trained", "hparams_search.trials=2"))
    assert {row["metric"] for row in table(folder)} == {"colour"}
    world = World()
    folder = searched(monkeypatch, world, words("hparams_search.direction=minimize"))
    rows = [row for row in table(folder) if row["method"] == "kl_rlhf"]
    worst = min(rows, key=lambda row: float(row["gain"]))
    assert yaml.safe_load((folder / "kl_rlhf.yaml").read_text())["method"]["kl"] == float(worst["value"])


@pytest.mark.parametrize(
    "given, said",
    [
        (["method=best_of_n"], "method=best_of_n is not validated while it trains"),
        (["eval.every=0"], "is not validated while it trains; leave it out, or set eval.every=1"),
        (
            ["method=sim", "model=sandbox_one_step", "epochs=1"],
            "hparams_search.space.sim (conf/hparams_search/knob.yaml): method=sim has no knob there; add",
        ),
        (["reward=scene_judge,colour"], "method=ddpo has several settings; only method and seed take several values in a search"),
        (["method.kl=0.1,0.2"], "only method and seed take several values"),
        (["method=kl_rlhf", "method.kl=0.1"], "method.kl: given twice"),
        (["hparams_search=knbo"], "hparams_search=knbo (conf/hparams_search): no such choice; did you mean knob?"),
        (["hparams_search=null"], "hparams_search=null (conf/hparams_search): no such choice; there is knob"),
        (["hparams_search.trials=0"], "hparams_search.trials (conf/hparams_search/knob.yaml): 0 is no value for it"),
        (["hparams_search.trails=3"], "did you mean hparams_search.trials?"),
        (["hparams_search.direction=up"], "hparams_search.direction"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    searched(monkeypatch, world, words(*given), code=2)
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not world.asked
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "space, said",
    [
        ({"method.kl": {"low": 0.1, "high": 1.0}, "method.clip": {"low": 0.1, "high": 1.0}}, "one knob a method"),
        ({"method.kl": 3}, "3 is no range; write {low: ..., high: ..., log: true}"),
        ({"method.kl": {"low": 1.0, "high": 0.1}}, "1 to 0.1; low is below high"),
        ({"method.kl": {"low": 0.0, "high": 0.1, "log": True}}, "above 0 where log is true"),
        ({"method.kl": {"low": "1e-5", "high": 0.1}}, "hparams_search.space.ddpo.method.kl.low"),
        ({"method.kl": {"low": -1.0, "high": 0.1}}, "method.kl"),  # the method's own range
        ({"method.lk": {"low": 0.5, "high": 1.0}}, "did you mean method.kl?"),
    ],
)
def test_a_wrong_space_is_one_line(
    space: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = check._read

    def other(file: Path) -> Any:
        return read(file) | {"space": {"ddpo": space}} if file.name == "knob.yaml" else read(file)

    monkeypatch.setattr(check, "_read", other)
    searched(monkeypatch, World(), words("method=ddpo"), code=2)
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_metric_that_no_run_has_names_those_there_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    searched(monkeypatch, World(), words("hparams_search.metric=exact_jugde"), code=2)
    assert "did you mean exact_judge?" in capsys.readouterr().err


def test_settings_without_a_search_are_asked_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "hparams_search.trials=3"]) == 2
    assert "hparams_search: which one? add hparams_search=knob" in capsys.readouterr().err


def test_without_optuna_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(words()) == 3
    assert "pip install 'alignbench[search]'" in capsys.readouterr().err


def test_a_search_is_no_part_of_a_run() -> None:
    for word in ("hparams_search=knob", "hparams_search.trials=3"):
        with pytest.raises(ConfigError, match=r"a search is many runs and no part of one; add -m"):
            compose([word])
    assert "hparams_search" not in compose([]).config


def test_every_knob_of_every_search_is_one_that_its_method_has() -> None:
    from conftest import fitting

    for name in choices("hparams_search", conf_folder()):
        for method, knobs in check.read_choice("hparams_search", name, conf_folder())["space"].items():
            for key, ends in knobs.items():
                for end in (ends["low"], ends["high"]):
                    compose([*fitting("method", method), f"{key}={end!r}"])
