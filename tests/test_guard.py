"""Judges that fail while a run goes on: who is asked again, what stays without a score, what is kept aside, what is remembered (R6)."""

import json
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_zoo import ZOO, Hill, made, moved, optimise, prompts_of, same, weights
from PIL import Image
from torch import Tensor

from alignbench.__main__ import main
from alignbench.compose import _digest
from alignbench.config import MissingAsset, Stopped
from alignbench.meters import Meters
from alignbench.methods.base import Method
from alignbench.report.record import Record, read_metrics, read_result
from alignbench.rewards.base import Changed, Unreachable
from alignbench.rewards.judge import Guard, Judge
from alignbench.rewards.memory import Memory
from alignbench.rewards.mix import Mix
from alignbench.rewards.quarantine import Quarantine
from alignbench.rewards.scene_judge import SceneJudge
from alignbench.rng import Draws, generator

SKIP = Guard("skip", patience=2.0)
PROMPTS = ["one", "two", "two", "three", "four", "five"]
Answer = Callable[[Tensor, Tensor], Any]


def pictures() -> Tensor:
    """Six whose second pixel of the second row says which is which."""
    images = torch.rand(6, 3, 2, 2, generator=generator(0, "pictures"))
    images[:, 0, 1, 1] = torch.arange(6) / 10
    return images


def which(images: Tensor) -> Tensor:
    return (images[:, 0, 1, 1] * 10).round().long()


class Faulty(Hill):
    """The mean of a picture, put through `answer(scores, which)`; remembers who it was asked about."""

    name = "faulty"

    def __init__(self, answer: Answer, costly: bool = False, grouped: bool = False):
        super().__init__()
        self.answer, self.asked = answer, list[list[int]]()
        self.size_gb, self.grouped = float(costly), grouped  # type: ignore[misc]

    def forward(self, images: Tensor, prompts: list[str]) -> Any:
        self.asked.append(which(images).tolist())
        return self.answer(images.mean((1, 2, 3)), which(images))

    def map(self, images: Tensor, prompts: list[str]) -> Any:
        scores = self(images, prompts)
        return scores[:, None, None].expand(-1, *images.shape[2:]) if isinstance(scores, Tensor) and scores.ndim == 1 else scores


def raises_at_3(scores: Tensor, rows: Tensor) -> Tensor:
    if (rows == 3).any():
        raise RuntimeError("this picture breaks it")
    return scores


def gone(scores: Tensor, rows: Tensor) -> Tensor:
    raise Unreachable("dead")


def gone_at_3(scores: Tensor, rows: Tensor) -> Tensor:
    return gone(scores, rows) if (rows == 3).any() else scores


BROKEN: dict[str, tuple[Answer, list[int]]] = {  # what is without a score in the end
    "raises": (raises_at_3, [3]),
    "nan": (lambda scores, rows: scores.masked_fill(rows == 3, torch.nan), [3]),
    "inf": (lambda scores, rows: scores.masked_fill(rows > 3, torch.inf), [4, 5]),
    "wrong count": (lambda scores, rows: scores[1:] if len(scores) > 1 else scores, []),
    "wrong shape": (lambda scores, rows: scores[:, None], list(range(6))),
    "wrong type": (lambda scores, rows: scores.tolist(), list(range(6))),
    "dies on one": (gone_at_3, [3]),
    "dead": (gone, list(range(6))),
    "sleeps": (lambda scores, rows: scores if len(scores) == 1 else time.sleep(30), []),  # once it is asked one by one it answers
}


@pytest.mark.parametrize("ask", ["score", "map"])
@pytest.mark.parametrize("case", BROKEN)
def test_what_can_be_scored_is_and_the_rest_has_none(case: str, ask: str) -> None:
    answer, missing = BROKEN[case]
    judge, images = Judge(Faulty(answer), Meters(), SKIP), pictures()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = getattr(judge, ask)(images, PROMPTS)
    there = [row for row in range(6) if row not in missing]
    flat = scores.reshape(6, -1)
    assert flat.isnan().all(1).nonzero().squeeze(1).tolist() == missing
    torch.testing.assert_close(flat[there], images.mean((1, 2, 3))[there, None].expand_as(flat[there]))
    assert [f"{len(missing)} of 6 images have no score" in str(each.message) for each in caught] == [True] * bool(missing)
    assert judge.meters.reward_queries == 6
    ended = MissingAsset if case in ("dies on one", "dead", "sleeps") else ValueError  # the judge's fault, or the answer's
    with pytest.raises(ended, match=r"reward faulty|dead"):
        getattr(Judge(Faulty(answer), Meters(), Guard(patience=2.0)), ask)(images, PROMPTS)


def test_a_judge_that_is_gone_is_not_asked_about_every_image() -> None:
    """Each ask of such a judge may take its whole time-out."""
    dead = Faulty(gone)
    with pytest.warns(UserWarning, match="no score and teach nothing: dead"):
        assert Judge(dead, Meters(), SKIP).score(pictures(), PROMPTS).isnan().all()
    assert dead.asked == [[0, 1, 2, 3, 4, 5], [0]]


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_another_judge_ends_the_run_under_every_policy(policy: Any) -> None:
    def changed(scores: Tensor, rows: Tensor) -> Tensor:
        raise Changed("identity changed mid-run")

    with pytest.raises(MissingAsset, match="identity changed mid-run"):
        Judge(Faulty(changed), Meters(), Guard(policy)).score(pictures(), PROMPTS)


def test_a_judge_with_a_time_limit_keeps_gradients_and_errors() -> None:
    images = pictures().requires_grad_(True)
    Judge(Faulty(fine), Meters(), Guard(patience=60)).score(images, PROMPTS).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 12))
    with torch.no_grad():
        assert not Judge(Faulty(fine), Meters(), Guard(patience=60)).score(images, PROMPTS).requires_grad
    with pytest.raises(ValueError, match="this picture breaks it"):
        Judge(Faulty(raises_at_3), Meters(), Guard(patience=60)).score(images, PROMPTS)


def test_images_that_are_judged_together_fail_together() -> None:
    """The second and the third have one prompt."""
    together = Faulty(lambda scores, rows: gone_at_3(scores, rows + 1), grouped=True)
    with pytest.warns(UserWarning, match="2 of 6"):
        scores = Judge(together, Meters(), SKIP).score(pictures(), PROMPTS)
    assert scores.isnan().nonzero().squeeze(1).tolist() == [1, 2]
    assert [1, 2] in together.asked


@pytest.mark.parametrize("case", ["nan", "raises"])
def test_the_other_images_keep_their_gradient(case: str) -> None:
    """A NaN in one image's graph would reach all: 0 times NaN is NaN."""
    images = pictures().requires_grad_(True)
    answer = BROKEN[case][0] if case == "raises" else lambda scores, rows: scores / (rows != 3) * (rows != 3)
    with pytest.warns(UserWarning, match="1 of 6"):
        scores = Judge(Faulty(answer), Meters(), SKIP).score(images, PROMPTS)
    scores[[0, 1, 2, 4, 5]].sum().backward()
    expected = torch.full_like(images, 1 / 12)
    expected[3] = 0
    torch.testing.assert_close(images.grad, expected)


# --- methods


class Silent(Hill):
    """Without a score for those images whose first pixel is at least `at`; the others' is Hill's."""

    def __init__(self, at: float):
        super().__init__()
        self.at = at

    def map(self, images: Tensor, prompts: list[str]) -> Tensor:
        bad = images.detach().flatten(1)[:, 0] >= self.at
        return super().map(images, prompts).masked_fill(bad[:, None, None], torch.nan)


def guarded(name: str, at: float, **changes: Any) -> Method:
    method = moved(made(name, reward=Silent(at), **changes))
    method.judge.guard = SKIP
    for judge in method.judges:
        judge.guard = SKIP
    return method


TAUGHT = [name for name in ZOO if name not in ("diff_instruct", "diffusion_dpo", "diffusion_dpo_sum")]  # which ask nobody


@pytest.mark.filterwarnings("ignore:.*have no score")
@pytest.mark.parametrize("name", TAUGHT)
def test_no_weight_becomes_nan_where_some_images_have_no_score(name: str) -> None:
    method = guarded(name, at=1.0 if name.startswith("pso") else 0.5, micro_batch=4)
    before = weights(method)
    rows = list(optimise(method, 2))
    assert all(value == value for row in rows for key, value in row.items() if key != "reward")  # none where a batch has none
    assert all(value.isfinite().all() for value in weights(method).values())
    assert not same(weights(method), before)
    unscored, queries = method.policy.model.meters.images_unscored, method.policy.model.meters.reward_queries
    assert name.startswith("di_star") or 0 < unscored < queries


@pytest.mark.filterwarnings("ignore:.*have no score")
@pytest.mark.parametrize("name", [name for name in TAUGHT if not name.startswith(("di_star", "kl_rlhf", "ddpo_group"))])
def test_an_epoch_without_any_score_moves_no_weight(name: str) -> None:
    """But for those whose loss has a divergence beside the reward."""
    method = guarded(name, at=-torch.inf, micro_batch=4)
    before = weights(method)
    assert all(row["gradient"] == 0 for row in optimise(method, 2))
    for batch in method.collect(prompts_of(method), Draws(0, 0)):
        assert method.idle(batch)
    assert same(weights(method), before)


@pytest.mark.filterwarnings("ignore:.*have no score")
@pytest.mark.parametrize("name", ["ddpo", "ddpo_group", "ddpo_sf", "pxpo", "pxpo_sf", "kl_rlhf", "rwr", "rwr_sparse"])
def test_the_others_learn_as_if_it_had_not_been_sampled(name: str) -> None:
    """Their advantages are those of a reward vector that never had the unscored in it."""
    whole, part = guarded(name, at=torch.inf), guarded(name, at=0.5)
    sampled = [method.sample(prompts_of(method), "image", Draws(0, 0).each("rollout", range(12))) for method in (whole, part)]
    assert torch.equal(sampled[0][0].x, sampled[1][0].x)
    known = ~sampled[1][1].isnan()
    assert 0 < known.sum() < 12
    assert torch.equal(sampled[0][1][known], sampled[1][1][known])
    seen = torch.cat([credit(batch).reshape(len(batch), -1).abs().sum(1) for batch in part.collect(prompts_of(part), Draws(0, 0))])
    assert (seen > 0).any()
    states = torch.cat([state(batch) for batch in part.collect(prompts_of(part), Draws(0, 0))])
    unscored = {tuple(row) for row in sampled[1][0].x[~known].flatten(2).flatten(0, 1).tolist()}
    assert not any(credited and tuple(row) in unscored for row, credited in zip(states.tolist(), (seen > 0).tolist(), strict=True))


def credit(batch: Any) -> Tensor:
    return batch.advantage if hasattr(batch, "advantage") else batch.weight


def state(batch: Any) -> Tensor:
    return (batch.y if hasattr(batch, "y") else batch.x0).flatten(1)


@pytest.mark.filterwarnings("ignore:.*have no score")
@pytest.mark.parametrize("at", [1, 3, 12])
def test_the_weight_of_a_reward_does_not_depend_on_how_a_turn_is_cut(at: int) -> None:
    """DI* means over a turn's images, those without a score among them, however many go through the network at once."""
    whole, cut = (guarded("di_star", at=0.5, micro_batch=size) for size in (12, at))
    for _ in zip(optimise(whole, 2), optimise(cut, 2), strict=True):
        pass
    for one, other in zip(weights(whole).values(), weights(cut).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_finite_score_without_a_finite_slope_moves_no_weight_to_nan() -> None:
    """The slope of a square root at 0 is infinite, and 0 times that is NaN."""

    class Steep(Hill):
        def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
            own = images.mean((1, 2, 3))
            return (own - own.detach()).square().sqrt() + own

    method = made("di_star", reward=Steep())
    with pytest.raises(ValueError, match=r"the gradient of reward hill is not finite for 12 of 12 images; no weight was changed by it"):
        list(optimise(method, 1))
    method = made("di_star", reward=Steep())
    method.judge.guard = SKIP
    with pytest.warns(UserWarning, match="it is taken as 0"):
        list(optimise(method, 1))
    assert all(value.isfinite().all() for value in weights(method).values())


# --- kept aside


def test_what_has_no_score_is_kept_aside_once(tmp_path: Path) -> None:
    told = {"seed": 7, "epoch": 3}
    guard = Guard("quarantine", None, Quarantine(tmp_path / "quarantine", told))
    judge = Judge(Faulty(raises_at_3), Meters(), guard)
    for _ in range(2):  # a resumed run meets it again
        with pytest.warns(UserWarning, match="this picture breaks it"):
            judge.score(pictures(), PROMPTS)
    (line,) = [json.loads(file.read_text()) for file in (tmp_path / "quarantine").glob("*.json")]
    assert {key: line[key] for key in ("prompt", "judge", "seed", "epoch")} == {"prompt": "three", "judge": "faulty", "seed": 7, "epoch": 3}
    assert "this picture breaks it" in line["why"]
    (file,) = (tmp_path / "quarantine").glob("*.png")
    assert file.stem == line["image"]
    seen = torch.tensor(list(Image.open(file).tobytes())).reshape(2, 2, 3).permute(2, 0, 1)
    assert torch.equal(seen, (pictures()[3] * 255).round().long())


# --- remembered


def fine(scores: Tensor, rows: Tensor) -> Tensor:
    return scores


def test_a_costly_judge_is_asked_once_about_an_image_and_prompt(tmp_path: Path) -> None:
    guard = Guard("fail", None, None, Memory(tmp_path / "scores.sqlite"))
    judge = Judge(reward := Faulty(fine, costly=True), Meters(), guard)
    first = judge.score(pictures()[:4], PROMPTS[:4])
    assert torch.equal(judge.score(pictures(), PROMPTS)[:4], first)
    assert reward.asked == [[0, 1, 2, 3], [4, 5]]
    assert judge.meters.reward_queries == 10  # what a run is said to cost does not depend on what the disk remembers
    judge.score(pictures()[:1], ["another prompt"])
    judge.score(pictures()[:1] + 1e-6, PROMPTS[:1])
    assert reward.asked[2:] == [[0], [0]]
    other = Judge(again := Faulty(fine, costly=True), Meters(), Guard("fail", None, None, Memory(tmp_path / "scores.sqlite")))
    assert torch.equal(other.score(pictures()[:4], PROMPTS[:4]), first)
    assert again.asked == []
    stranger = Judge(third := Faulty(fine, costly=True), Meters(), guard)
    third.weights = torch.nn.Parameter(torch.ones(1))  # another judge by its weights
    stranger.score(pictures(), PROMPTS)
    assert third.asked == [[0, 1, 2, 3, 4, 5]]


def test_no_score_is_not_remembered_and_nor_is_what_depends_on_more(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "scores.sqlite")
    judge = Judge(reward := Faulty(BROKEN["nan"][0], costly=True), Meters(), Guard("skip", None, None, memory))
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of"):
            judge.score(pictures(), PROMPTS)
    assert reward.asked == [[0, 1, 2, 3, 4, 5], [3]]
    for kind in ({"grouped": True, "costly": True}, {"costly": False}):
        judge = Judge(reward := Faulty(fine, **kind), Meters(), Guard("fail", None, None, memory))
        for _ in range(2):
            judge.score(pictures(), PROMPTS)
        assert len(reward.asked) == 2
    judge = Judge(reward := Faulty(fine, costly=True), Meters(), Guard("fail", None, None, memory))
    for _ in range(2):
        assert judge.score(pictures().requires_grad_(True), PROMPTS).requires_grad
    assert len(reward.asked) == 2


def test_a_damaged_memory_is_said_once_and_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "scores.sqlite").write_bytes(b"no database " * 1000)
    judge = Judge(reward := Faulty(fine, costly=True), Meters(), Guard("fail", None, None, Memory(tmp_path / "scores.sqlite")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            torch.testing.assert_close(judge.score(pictures(), PROMPTS), pictures().mean((1, 2, 3)))
    assert ["scores are not remembered" in str(each.message) for each in caught] == [True]
    assert len(reward.asked) == 3


def test_who_judges_is_more_than_a_name() -> None:
    """Members of a mix by all that they are, tokenizers by their words, buffers and tuples by their values."""

    class Words:
        def __init__(self, *words: str):
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: index for index, word in enumerate(self.words)}

    class Reader(Hill):
        def __init__(self, *words: str, size: tuple[int, int] = (8, 8)):
            super().__init__()
            self.tokenizer, self.size = Words(*words), size

    judges = [Reader("a", "b"), Reader("b", "a"), Reader("a", "b", size=(8, 9))]
    mixes = [Mix(judges=[judge], weights=[1.0], means=[0.0], stds=[None]) for judge in judges]
    assert len({json.dumps(each.identity()) for each in [*judges, *mixes]}) == 6
    assert Reader("a", "b").identity() == judges[0].identity()


def test_two_runs_may_write_at_once(tmp_path: Path) -> None:
    memories = [Memory(tmp_path / "scores.sqlite") for _ in range(4)]
    keys = [[bytes([n, m]) for m in range(200)] for n in range(4)]
    threads = [threading.Thread(target=m.keep, args=(k, torch.arange(200.0))) for m, k in zip(memories, keys, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(Memory(tmp_path / "scores.sqlite").recall(each), torch.arange(200.0)) for each in keys)


# --- at the same time


@pytest.mark.parametrize("name", ["ddpo", "kl_rlhf", "d3po", "pso", "rwr", "sft"])
def test_overlap_changes_no_number(name: str) -> None:
    one, other = moved(made(name)), moved(made(name, overlap=True))
    assert list(optimise(one, 2)) == list(optimise(other, 2))
    assert same(weights(one), weights(other))
    assert one.policy.model.meters.state() == other.policy.model.meters.state()


def test_a_chunk_is_judged_while_the_next_is_sampled() -> None:
    """The judge gives no answer to the first chunk before the second has begun."""
    begun = threading.Event()

    class Patient(Hill):
        def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
            assert begun.wait(60)
            return super().forward(images, prompts)

    method = made("ddpo", reward=Patient(), overlap=True)  # chunks of 5
    sampled, chunks = method.policy._rollout, []

    def noticed(*words: Any) -> Any:
        chunks.append(words)
        if len(chunks) == 2:
            begun.set()
        return sampled(*words)

    method.policy._rollout = noticed  # type: ignore[method-assign]
    _, reward = method.sample(prompts_of(method), "image", Draws(0, 0).each("rollout", range(12)))
    assert len(chunks) == 3
    assert not reward.requires_grad


def test_neither_an_error_nor_a_signal_waits_for_what_is_queued() -> None:
    asked, stopped = [], threading.Event()

    class Slow(Hill):
        def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
            asked.append(len(images))
            stopped.wait(60)
            return super().forward(images, prompts)

    method = made("ddpo", reward=Slow(), overlap=True, chunk=2)  # six chunks
    sampled = method.policy._rollout

    def interrupted(*words: Any) -> Any:
        if len(asked) == 1:
            raise Stopped(15)
        return sampled(*words)

    method.policy._rollout = interrupted  # type: ignore[method-assign]
    begun = time.monotonic()
    with pytest.raises(Stopped):
        method.sample(prompts_of(method), "image", Draws(0, 0).each("rollout", range(12)))
    assert time.monotonic() - begun < 30
    stopped.set()
    assert asked == [2]


def test_an_error_in_the_judge_s_thread_is_the_run_s() -> None:
    method = made("ddpo", reward=Silent(-torch.inf), overlap=True)
    with pytest.raises(ValueError, match="not finite"):
        method.sample(prompts_of(method), "image", Draws(0, 0).each("rollout", range(12)))


# --- through the front door


QUICK = ["eval=quick", "epochs=2", "eval.every=1", "method.images=16", "method.batch=8", "sampler.steps=3", "eval.prompts=4"]


def test_a_run_skips_keeps_aside_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = SceneJudge.forward

    def now_and_then(self: SceneJudge, images: Tensor, prompts: list[str]) -> Tensor:
        return usual(self, images, prompts).masked_fill(images.mean((1, 2, 3)) > images.mean(), torch.nan)

    monkeypatch.setattr(SceneJudge, "forward", now_and_then)
    with pytest.warns(UserWarning, match="have no score"):
        assert main([*QUICK, "judging.on_error=quarantine", f"output={tmp_path}"]) == 0
    (folder,) = tmp_path.glob("ddpo-*")
    result = read_result(folder)
    assert 0 < result["meters"]["images_unscored"] < result["meters"]["reward_queries"] == 32
    table = {row["name"]: row for row in result["metrics"]}
    assert 0 < table["scene_judge"]["images"] < table["exact_judge"]["images"] == 8
    lines = [json.loads(file.read_text()) for file in (folder / "quarantine").glob("*.json")]
    assert {line["judge"] for line in lines} == {"scene_judge"}
    assert {line["epoch"] for line in lines} == {0, 1}
    assert all((folder / "quarantine" / f"{line['image']}.png").is_file() for line in lines)
    assert (folder / "report.html").is_file()
    assert result["judges"]["scene_judge"] == SceneJudge().identity()


def test_a_validation_without_any_score_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, asked = SceneJudge.forward, []

    def away_at_first(self: SceneJudge, images: Tensor, prompts: list[str]) -> Tensor:
        asked.append(len(images))
        if sum(asked) <= 16:  # the first validation, image by image too
            raise Unreachable("not here yet")
        return usual(self, images, prompts)

    monkeypatch.setattr(SceneJudge, "forward", away_at_first)
    with pytest.warns(UserWarning, match="have no score"):
        assert main([*QUICK, "judging.on_error=skip", f"output={tmp_path}"]) == 0
    (folder,) = tmp_path.glob("ddpo-*")
    rows = [row for row in read_metrics(folder) if row["split"] == "validation"]
    assert ["reward" in row for row in rows] == [False, True, True]
    assert (folder / "report.html").is_file()


def test_a_judge_may_not_take_the_place_of_another_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(SceneJudge, "name", "kl")
    assert main([*QUICK, f"output={tmp_path}"]) == 2
    assert "a judge that calls itself 'kl' would take the place of another column" in capsys.readouterr().err


def test_a_finished_run_is_another_s_where_a_head_or_a_vocabulary_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignbench.compose import compose

    monkeypatch.chdir(tmp_path)
    words = {"aesthetic": "reward.head=own.bin", "vlm": "reward.scorer=own.bin", "imagereward": "reward.tokenizer=own.bin"}
    for reward, word in words.items():
        hashes = set()
        for content in (b"one", b"two"):
            Path("own.bin").write_bytes(content)
            _digest.cache_clear()
            hashes.add(compose([f"reward={reward}", word]).hash)
        assert len(hashes) == 2


def test_policies_have_one_identity_while_nothing_fails() -> None:
    from alignbench.compose import compose

    usual = compose([])
    assert compose(["judging.overlap=true", "judging.cache=false", "judging.on_error=fail"]).hash == usual.hash
    assert compose(["judging.on_error=skip"]).hash != usual.hash


def test_another_judge_does_not_go_on_where_one_began(tmp_path: Path) -> None:
    began, now = {"hpsv2": {"name": "hpsv2", "weights": "aa"}}, {"hpsv2": {"name": "hpsv2", "weights": "bb"}}
    Record(tmp_path).judges(began)
    Record(tmp_path).judges(began)
    with pytest.raises(ValueError, match=r"not the one that this run began with \(hpsv2.weights differs\)"):
        Record(tmp_path).judges(now)
