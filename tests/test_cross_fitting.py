"""Ensembles: cross-fitting, choosing, keeping the detector, and their files."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

import vmr_env.agents.ensemble.cross_fitting
from tests.caches import ARGUMENTS, random_batch
from vmr_env.agents.base import Agent, Metrics
from vmr_env.agents.ensemble.cross_fitting import (
    Configured,
    CrossFit,
    CrossFittedEnsemble,
    Progress,
)
from vmr_env.agents.ensemble.files import load_ensemble, save_ensemble
from vmr_env.agents.evaluation import refine
from vmr_env.agents.expected_gain import ExpectedGain, ExpectedGainConfig
from vmr_env.agents.ppo import PPO
from vmr_env.agents.references import StopAtOnce
from vmr_env.agents.reinforce import Reinforce
from vmr_env.agents.sb3.vec_env import SB3PPO
from vmr_env.arrays import Bools, Floats
from vmr_env.benchmarks.experiment.experiment import cross_validation, train_test
from vmr_env.caches.reader import DecoderStateCache, Ragged, write_cache
from vmr_env.data.profiles import get_profile
from vmr_env.envs.curriculum import StepSchedule
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import DataError
from vmr_env.simulation.simulator import simulate

LATER = 31
"""The discrete action that moves both boundaries a clip later."""
EARLIER = 16
OPTIONS: dict[str, Any] = {"proposals": 1, "horizon": 1}


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> DecoderStateCache:
    """A detector that answers [10, 20] where [11, 21] is right, in 24 videos of 30 s."""
    n = 24
    batch = random_batch(n, q=1, saliency=False)
    batch = replace(
        batch,
        vids=[f"v{i}" for i in range(n)],
        durations=np.full(n, 30.0),
        n_clips=np.full(n, 30, np.int32),
        moments=Ragged.from_rows([np.array([[11.0, 21.0]])] * n),
        spans=np.full((n, 1, 2), [10 / 30, 20 / 30], np.float32),
        counts=np.ones(n, np.int32),
        models=np.zeros((n, 1), np.uint8),
    )
    folder = tmp_path_factory.mktemp("late") / "cache"
    return DecoderStateCache.open(write_cache(folder, batch, **{**ARGUMENTS, "models": ["one"]}))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> DecoderStateCache:
    folder = tmp_path_factory.mktemp("simulated") / "cache"
    return DecoderStateCache.open(simulate(folder, get_profile("charades"), "train", samples=50))


class Scripted(Agent):
    """Takes action `script[r]` after r rounds."""

    rounds = 4
    num_envs = 4
    script: ClassVar[tuple[int, ...]] = (EARLIER, EARLIER, LATER, EARLIER, EARLIER)

    def __init__(self, env: VMRVectorEnv, seed: int) -> None:
        super().__init__(env, seed)
        self.round = 0

    def update(self) -> Metrics:
        self.round += 1
        return {"charts/steps": 5.0}

    def act(self, observations: Floats, masks: Bools) -> np.ndarray:
        return np.full(len(masks), self.script[self.round])

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.round = state["round"]


class Live(Scripted):
    """Its state is the memory that it learns in, as networks' states are."""

    def __init__(self, env: VMRVectorEnv, seed: int) -> None:
        self.memory = {"rounds": [0]}
        super().__init__(env, seed)

    @property
    def round(self) -> int:
        return self.memory["rounds"][0]

    @round.setter
    def round(self, value: int) -> None:
        self.memory["rounds"][0] = value

    def state_dict(self) -> dict[str, Any]:
        return self.memory

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.round = state["rounds"][0]


class Worse(Scripted):
    script = (EARLIER,) * 5


class Rule(Scripted):
    """Does not learn."""

    rounds = 0
    script = (LATER,)


class Drifting(Agent):
    """Continuous, and bad: away from the moment."""

    num_envs = 4
    env_options: ClassVar[Mapping[str, Any]] = {"actions": "continuous", "horizon": 2}

    def act(self, observations: Floats, masks: Bools) -> np.ndarray:
        return np.full((len(masks), 2), -1.0, np.float32)


def _fit(make: type[Agent], cache: DecoderStateCache, **options: Any) -> Any:
    arguments: dict[str, Any] = {"members": 3, "evaluations": 4, "seed": 0, "options": OPTIONS, **options}
    watch = arguments.pop("watch", lambda progress: None)
    return CrossFit(make, cache, np.arange(len(cache)), **arguments).fit(watch)


@pytest.mark.parametrize("make", [Scripted, Live])
def test_the_best_round_out_of_fold_is_kept(late: DecoderStateCache, make: type[Scripted]) -> None:
    seen: list[Progress] = []
    ensemble, selection = _fit(make, late, watch=seen.append)
    # tIoU 9/11, then 1, or 8/12, which no longer reaches 0.7
    better, worse = (1 - 9 / 11) / 3, (8 / 12 - 9 / 11 - 1) / 3
    assert selection.rounds == (1, 2, 3, 4)
    assert selection.gains == pytest.approx((worse, better, worse, worse), abs=1e-6)
    assert (selection.chosen, selection.steps) == (2, 3 * 4 * 5)
    assert [member.round for member in ensemble.members] == [2, 2, 2]
    refined = refine(ensemble.act, late, np.arange(5), ensemble.options)
    np.testing.assert_allclose(refined.windows, np.tile([11.0, 21.0], (5, 1)), atol=1e-4)
    assert [(one.member, one.round) for one in seen] == [(k, r) for k in range(3) for r in range(1, 5)]


def test_an_ensemble_that_does_not_beat_the_detector_keeps_it(late: DecoderStateCache) -> None:
    ensemble, selection = _fit(Worse, late)
    assert (ensemble.members, selection.chosen) == ([], 0)
    assert max(selection.gains) < 0
    refined = refine(ensemble.act, late, np.arange(len(late)), ensemble.options)
    np.testing.assert_array_equal(refined.after, refined.before)
    np.testing.assert_allclose(refined.windows, np.tile([10.0, 20.0], (len(late), 1)), atol=1e-4)


def test_the_detector_is_kept_whatever_the_actions_are(late: DecoderStateCache) -> None:
    ensemble, _ = _fit(Drifting, late, options={"proposals": 1, **Drifting.env_options})
    assert ensemble.members == []
    refined = refine(ensemble.act, late, np.arange(6), ensemble.options)
    np.testing.assert_array_equal(refined.after, refined.before)


def test_a_gain_within_its_own_noise_is_no_gain() -> None:
    choose, vids = vmr_env.agents.ensemble.cross_fitting._choose, [f"v{i}" for i in range(20)]
    noisy = np.tile([1.0, -0.9], 10)[None]  # mean 0.05, standard error 0.21
    assert choose(noisy, vids) is None
    assert choose(np.concatenate([noisy, np.full((1, 20), 0.01)]), vids) is None  # the best mean is judged
    assert choose(np.full((1, 20), 0.01), vids) == 0
    assert choose(np.zeros((2, 20)), vids) is None


def test_queries_of_one_video_are_no_evidence_of_their_own() -> None:
    choose = vmr_env.agents.ensemble.cross_fitting._choose
    gains = np.repeat([0.5, -0.3, -0.2, 0.3], 25)[None]  # mean 0.075
    assert choose(gains, [f"v{i}" for i in range(100)]) == 0  # standard error 0.03
    assert choose(gains, [f"v{i // 25}" for i in range(100)]) is None  # 0.17, of four videos
    low = np.repeat([0.5, -0.35, -0.2, 0.25], 25)[
        None
    ]  # mean 0.05, standard error 0.035: between one and two
    assert choose(low, [f"v{i}" for i in range(100)]) == 0


class Sure(Rule):
    """Tells probabilities of two actions."""

    chance = 0.0

    def probabilities(self, observations: Floats, masks: Bools) -> np.ndarray:
        return np.tile([1 - self.chance, self.chance], (len(masks), 1))


def test_members_that_tell_probabilities_act_by_their_sum(late: DecoderStateCache) -> None:
    """Two that are nearly undecided give way to one that is sure."""
    env = VMRVectorEnv(4, source=late, autoreset_mode="SameStep")
    members = [Sure(env, seed) for seed in range(3)]
    for member, chance in zip(members, (0.4, 0.45, 0.95), strict=True):
        member.chance = chance
    masks = np.ones((4, 2), bool)
    assert CrossFittedEnsemble(members, {}).act(np.zeros((4, 1), np.float32), masks).tolist() == [1] * 4
    assert CrossFittedEnsemble(members[:2], {}).act(np.zeros((4, 1), np.float32), masks).tolist() == [0] * 4


def test_quality_is_the_mean_of_the_metrics() -> None:
    """Moments that grow may gain tIoU on average and lose recall; that is no gain."""
    tiou = np.array([0.2, 0.5, 0.6, 0.7, 1.0])
    r1 = [np.mean([one >= threshold for one in tiou]) for threshold in (0.5, 0.7)]
    assert vmr_env.agents.ensemble.cross_fitting.quality(tiou).mean() == pytest.approx(
        (tiou.mean() + sum(r1)) / 3
    )


def test_what_does_not_learn_is_judged_once(late: DecoderStateCache) -> None:
    ensemble, selection = _fit(Rule, late, rounds=7)
    assert (selection.rounds, selection.chosen, len(ensemble.members)) == ((1,), 1, 3)


def test_members_are_judged_on_videos_that_they_have_not_seen(
    simulated: DecoderStateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    vids = simulated.vids()
    learnt: list[set[str]] = []
    judged: list[set[str]] = []
    rows: list[int] = []
    environment, run = (
        vmr_env.agents.ensemble.cross_fitting.training_environment,
        vmr_env.agents.ensemble.cross_fitting.refine,
    )

    def note_learnt(make: Any, cache: Any, samples: np.ndarray, *more: Any) -> VMRVectorEnv:
        learnt.append({vids[i] for i in samples})
        return environment(make, cache, samples, *more)

    def note_judged(act: Any, cache: Any, samples: np.ndarray, options: Any) -> Any:
        judged.append({vids[i] for i in samples})
        rows.extend(samples.tolist())
        return run(act, cache, samples, options)

    monkeypatch.setattr(vmr_env.agents.ensemble.cross_fitting, "training_environment", note_learnt)
    monkeypatch.setattr(vmr_env.agents.ensemble.cross_fitting, "refine", note_judged)
    training = np.arange(5, 45)
    CrossFit(Rule, simulated, training, members=4, evaluations=1, seed=0, options=OPTIONS).fit()
    assert len(learnt) == len(judged) == 4
    assert all(not own & unseen for own, unseen in zip(learnt, judged, strict=True))
    assert sorted(rows) == training.tolist()  # each once


def test_the_seed_fixes_everything(simulated: DecoderStateCache) -> None:
    state = torch.random.get_rng_state()
    seen: list[list[Progress]] = [[], [], []]
    few = {"members": 2, "evaluations": 1, "rounds": 1}
    results = [_fit(ExpectedGain, simulated, **few, watch=seen[i].append) for i in range(2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert results[0][1] == results[1][1]
    assert seen[0] == seen[1]
    _fit(ExpectedGain, simulated, **few, seed=1, watch=seen[2].append)
    assert [one.metrics for one in seen[2]] != [one.metrics for one in seen[0]]


def test_too_few_members_or_videos(late: DecoderStateCache) -> None:
    with pytest.raises(ValueError, match="members is 1, expected at least 2"):
        _fit(Scripted, late, members=1)
    with pytest.raises(DataError, match="24 different videos, expected at least 25"):
        _fit(Scripted, late, members=25)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_plurality_is_the_most_common_vote_and_on_ties_the_first(votes: list[list[int]]) -> None:
    chosen = vmr_env.agents.ensemble.cross_fitting._plurality(np.array(votes))
    # Counter keeps the order of first occurrence among equally many.
    expected = [Counter(column).most_common(1)[0][0] for column in zip(*votes, strict=True)]
    assert chosen.tolist() == expected


def test_joint_votes_are_counted_whole_and_real_ones_averaged() -> None:
    joint = np.array([[[0, 1]], [[0, 2]], [[3, 2]], [[3, 2]]])
    assert vmr_env.agents.ensemble.cross_fitting._plurality(joint).tolist() == [
        [3, 2]
    ]  # not [0, 2], a vote of one
    real = np.array([[[0.0, 1.0]], [[1.0, 0.0]]], np.float32)
    mean = vmr_env.agents.ensemble.cross_fitting._plurality(real)
    assert (mean.tolist(), mean.dtype) == ([[0.5, 0.5]], np.float32)


@pytest.mark.parametrize("make", [ExpectedGain, PPO, Reinforce, SB3PPO])
def test_an_ensemble_from_its_file_acts_alike(
    make: type[Agent], simulated: DecoderStateCache, tmp_path: Path
) -> None:
    options = {"proposals": 2, **make.env_options}
    members = []
    for seed in range(2):
        env = VMRVectorEnv(make.num_envs, "charades", source=simulated, autoreset_mode="SameStep", **options)
        members.append(make(env, seed))
    members[0].update()
    before = CrossFittedEnsemble(members, options)
    path = tmp_path / "ensemble.safetensors"
    save_ensemble(path, before, simulated, {"seed": 3, "version": "1"})
    after = load_ensemble(path, simulated)
    assert after.options == options
    rows = np.arange(len(simulated))
    for one, other in zip(
        refine(before.act, simulated, rows, options),
        refine(after.act, simulated, rows, after.options),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["ensemble"])
    assert told["run"] == {"seed": 3, "version": "1", "dataset": "charades"}
    assert [file.name for file in tmp_path.iterdir()] == ["ensemble.safetensors"]


def test_agents_with_other_settings_come_back_with_them(late: DecoderStateCache, tmp_path: Path) -> None:
    pair = Configured(ExpectedGain, ExpectedGainConfig(members=2, hidden=8))
    assert (pair.num_envs, pair.env_options) == (ExpectedGain.num_envs, ExpectedGain.env_options)
    options = dict(pair.env_options)
    env = VMRVectorEnv(4, "charades", source=late, autoreset_mode="SameStep", **options)
    path = tmp_path / "pair.safetensors"
    save_ensemble(path, CrossFittedEnsemble([pair(env, 0)], options), late, {})
    (member,) = load_ensemble(path, late).members
    assert isinstance(member, ExpectedGain)
    assert member.config == pair.config
    assert len(member.members) == 2


class Counting(Scripted):
    def __init__(self, env: VMRVectorEnv, seed: int) -> None:
        super().__init__(env, seed)
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)


def test_states_keep_their_numpy_arrays(late: DecoderStateCache, tmp_path: Path) -> None:
    agent = Counting(VMRVectorEnv(4, "charades", source=late, autoreset_mode="SameStep", **OPTIONS), 0)
    agent.state = {"counts": np.arange(6).reshape(2, 3), "rate": np.float64(0.1), "names": ["a", {1: None}]}
    save_ensemble(tmp_path / "file.safetensors", CrossFittedEnsemble([agent], OPTIONS), late, {})
    (member,) = load_ensemble(tmp_path / "file.safetensors", late).members
    state = member.state_dict()
    np.testing.assert_array_equal(state["counts"], agent.state["counts"])
    assert (state["rate"], state["names"]) == (0.1, ["a", {1: None}])


def test_an_ensemble_without_members_comes_back_too(late: DecoderStateCache, tmp_path: Path) -> None:
    save_ensemble(tmp_path / "none.safetensors", CrossFittedEnsemble([], OPTIONS), late, {})
    ensemble = load_ensemble(tmp_path / "none.safetensors", late)
    assert ensemble.members == []
    assert ensemble.options == {**OPTIONS, "actions": "discrete"}


def test_files_that_do_not_fit_are_refused(
    late: DecoderStateCache, simulated: DecoderStateCache, tmp_path: Path
) -> None:
    path = tmp_path / "ensemble.safetensors"
    ensemble, _ = _fit(Scripted, late)
    save_ensemble(path, ensemble, late, {})
    tacos = simulate(tmp_path / "tacos", get_profile("tacos"), "train", samples=30)
    with pytest.raises(DataError, match="dataset: is 'charades', expected 'tacos'"):
        load_ensemble(path, DecoderStateCache.open(tacos))
    pool = write_cache(tmp_path / "pool", random_batch(9, saliency=False), **ARGUMENTS)
    with pytest.raises(DataError, match="width: is"):
        load_ensemble(path, DecoderStateCache.open(pool))
    content = path.read_bytes()
    for wrong, message in (
        (content[:100], "cannot be read"),
        (content.replace(b"Scripted", b"Twisted!"), "is damaged"),
        (save({"a": torch.zeros(2)}), "holds no ensemble"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=rf"ensemble\.safetensors.*{message}"):
            load_ensemble(path, late)
    with pytest.raises(DataError, match=r"missing\.safetensors"):
        load_ensemble(tmp_path / "missing.safetensors", late)
    with pytest.raises(DataError, match="cannot be written"):
        save_ensemble(tmp_path / "no" / "such.safetensors", ensemble, late, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json:dumps", "'json:dumps' is no agent"),
        ("json:JSONDecoder", "is no agent"),
        ("no_such_module:Agent", "cannot be imported"),
    ],
)
def test_classes_that_are_no_agents_are_refused(
    name: str, message: str, late: DecoderStateCache, tmp_path: Path
) -> None:
    module, _, cls = name.partition(":")
    ensemble, _ = _fit(type(cls, (Scripted,), {"__module__": module}), late)
    save_ensemble(tmp_path / "file.safetensors", ensemble, late, {})
    with pytest.raises(DataError, match=rf"file\.safetensors, class: .*{message}"):
        load_ensemble(tmp_path / "file.safetensors", late)


def test_folds_and_parts_keep_the_clips_of_a_source_video_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = random_batch(24)
    sources = [f"{i // 4:011d}" for i in range(24)]
    named = replace(batch, vids=[f"{source}_{2 * i}.0_{2 * i + 150}.0" for i, source in enumerate(sources)])
    cache = DecoderStateCache.open(
        write_cache(tmp_path / "clips", named, **{**ARGUMENTS, "dataset": "qvhighlights"})
    )
    for fold in cross_validation(cache, 3):
        train, test = ({sources[i] for i in rows} for rows in (fold.train_samples, fold.test_samples))
        assert not train & test

    learnt: list[set[str]] = []
    made = vmr_env.agents.ensemble.cross_fitting.training_environment

    def environment(make: Any, cache: DecoderStateCache, samples: Any, *more: Any) -> VMRVectorEnv:
        learnt.append({sources[i] for i in samples.tolist()})
        return made(make, cache, samples, *more)

    monkeypatch.setattr(vmr_env.agents.ensemble.cross_fitting, "training_environment", environment)
    options = {"proposals": 1}
    CrossFit(StopAtOnce, cache, np.arange(24), members=3, evaluations=1, seed=0, options=options).fit()
    assert sum(map(len, learnt)) == 2 * len(set(sources))  # each video is kept from exactly one member


def test_caches_for_training_and_test_share_no_source_video(tmp_path: Path) -> None:
    """Other clips of the same videos are no videos that nobody has learnt from."""
    caches = []
    for start in (0, 150):
        batch = random_batch(4, first=start)
        vids = [f"{i:011d}_{start}.0_{start + 150}.0" for i in range(4)]
        path = write_cache(
            tmp_path / str(start), replace(batch, vids=vids), **{**ARGUMENTS, "dataset": "qvhighlights"}
        )
        caches.append(DecoderStateCache.open(path))
    assert not set(caches[0].vids()) & set(caches[1].vids())
    with pytest.raises(DataError, match="shares 4 source videos with another cache"):
        train_test(*caches)


def test_members_learn_through_the_stages_of_a_curriculum(late: DecoderStateCache, tmp_path: Path) -> None:
    """By the stage after each round of 48 steps; what is visited before an agent learns does not count."""
    stages: list[int] = []

    class Watching(ExpectedGain):
        num_envs = 8

        def update(self) -> Metrics:
            metrics = super().update()
            stages.append(self.env.unwrapped.stage)
            return metrics

    ensemble, _ = CrossFit(
        Watching,
        late,
        np.arange(len(late)),
        members=2,
        evaluations=1,
        seed=0,
        options=OPTIONS,
        rounds=4,
        curriculum=StepSchedule((40, 100)),
    ).fit()
    assert stages == [2, 2, 3, 3] * 2
    save_ensemble(tmp_path / "file.safetensors", CrossFittedEnsemble(ensemble.members, OPTIONS), late, {})
