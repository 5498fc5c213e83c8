"""What users of environment packages complain about, and what these environments therefore guarantee."""

import copy
import importlib.util
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import gymnasium
import numpy as np
import pytest
from caches import ARGUMENTS, make_cache, random_batch
from gymnasium.envs.registration import registry
from gymnasium.error import Error, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from refinement import user_cache_in
from walks import trajectory_hash, walk

from vmr_env.caches.boundary_features import log_length
from vmr_env.caches.reader import Ragged, write_cache
from vmr_env.data.profiles import PROFILES
from vmr_env.envs.actions import FREE
from vmr_env.envs.env import VMREnv
from vmr_env.envs.observations import LENGTH_BOUND
from vmr_env.envs.sources import open_cache
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.errors import DataError

IDS = sorted(
    name for name in registry if name.startswith("VMR-") and "-Spans-" not in name and "-Head-" not in name
)
MODES = ("discrete", "multidiscrete", "continuous")
NO_RENDERING = importlib.util.find_spec("vmr_env.rendering.ansi") is None

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A small cache of each data set, and timelines of all in a folder of the tests."""
    with user_cache_in(tmp_path_factory.mktemp("guarantees")) as folder:
        batch = replace(random_batch(20, full=True), qids=list(range(20)))
        for name in PROFILES:
            (folder / name).mkdir()
        yield {
            name: str(write_cache(folder / name / "test", batch, **{**ARGUMENTS, "dataset": name}))
            for name in PROFILES
        }


@pytest.fixture
def source(sources: dict[str, str]) -> str:
    return sources["charades"]


@pytest.fixture
def make(source: str) -> Make:
    return partial(VMREnv, source=source)


# What may be done


@pytest.mark.parametrize(
    ("free", "possible"), [(["move"], {"move"}), ("switch", {"switch"}), ((), set()), (FREE, set(FREE))]
)
def test_only_what_is_free_is_possible(make: Make, free: Any, possible: set[str]) -> None:
    env = make(free=free)
    groups = dict(env.action_mode.groups)
    stop = groups.pop("stop")
    seen = set()
    for seed in range(20):
        mask = env.reset(seed=seed)[1]["action_mask"]
        assert mask[stop].all()
        seen |= {name for name, part in groups.items() if mask[part].any()}
    assert seen == possible
    env.set_stage(1)  # frees no switches
    env.reset(seed=0)
    assert not env.step(env.action_mode.size - 2)[4]["action_mask"][groups["switch"]].any()


# Seeding


def sequence(env: VMREnv, episodes: int, seed: int | None = None) -> list[int]:
    """Samples of successive episodes; a seed is given to the first reset alone."""
    first = [env.reset(seed=seed)[1]["sample"]]
    return first + [env.reset()[1]["sample"] for _ in range(episodes - 1)]


def test_same_seed_same_episodes(make: Make) -> None:
    env = make()
    expected = sequence(env, 30, seed=5)
    assert sequence(env, 30, seed=5) == sequence(make(), 30, seed=5) == expected
    assert sequence(env, 30, seed=6) != expected


def test_one_stream_goes_on_after_reset(make: Make) -> None:
    env = make()
    seen = sequence(env, 60, seed=0)
    assert len(set(seen)) > 10
    assert sequence(env, 60) != seen


def test_unseeded_environments_differ(make: Make) -> None:
    assert sequence(make(), 30) != sequence(make(), 30)


def test_trajectory_is_equal_in_two_processes(source: str) -> None:
    code = f"from walks import trajectory_hash; print(trajectory_hash({source!r}))"
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    assert other.stdout.strip() == trajectory_hash(source) != trajectory_hash(source, seed=4)


def test_global_generators_are_untouched(make: Make, source: str) -> None:
    before = pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002  (read, not used)
    list(walk(make(stage=2), seed=0, steps=20))
    envs = VMRVectorEnv(3, source=source)
    envs.reset(seed=1)
    envs.step(envs.action_space.sample())
    assert pickle.dumps((random.getstate(), np.random.get_state())) == before  # noqa: NPY002


# Observations, infos and types


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize("actions", MODES)
def test_observations_lie_in_the_space(make: Make, actions: str, observation: str) -> None:
    env = make(actions=actions, observation=observation)
    for seen, *_ in walk(env, seed=0, steps=300):
        assert env.observation_space.contains(seen)
        for part in seen.values() if isinstance(seen, dict) else [seen]:
            assert part.dtype == np.float32
            assert np.isfinite(part).all()


@pytest.mark.parametrize("actions", MODES)
def test_vector_observations_lie_in_the_space(source: str, actions: str) -> None:
    envs = VMRVectorEnv(64, source=source, actions=actions, autoreset_mode="SameStep")
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(60):
        seen, rewards, *_ = envs.step(envs.action_space.sample())
        assert seen.dtype == np.float32
        assert envs.observation_space.contains(seen)
        assert np.isfinite(rewards).all()


def test_dict_has_one_level_and_no_reserved_key(make: Make) -> None:
    env = make(observation="dict", components=["span", "points", "decoder_state"])
    assert set(env.observation_space.spaces) == {"span", "points", "decoder_state"}
    spaces = make(observation="dict").observation_space.spaces
    assert all(type(space) is gymnasium.spaces.Box for space in spaces.values())
    assert "state" not in spaces
    assert not hasattr(env, "compute_reward")


def test_returned_arrays_are_fresh(make: Make, source: str) -> None:
    envs = VMRVectorEnv(4, source=source)
    observation, infos = envs.reset(seed=0)
    vector = [(observation, infos), *((s[0], s[4]) for s in (envs.step(np.arange(4)) for _ in range(6)))]
    single = [(result[0], result[-1]) for result in walk(make(), seed=0, steps=12)]
    for results in (vector, single):
        arrays = [[seen, *(v for v in info.values() if isinstance(v, np.ndarray))] for seen, info in results]
        for earlier, later in pairwise(arrays):
            assert not any(np.shares_memory(a, b) for a in earlier for b in later)


def test_returned_arrays_do_not_change_later(source: str) -> None:
    envs = VMRVectorEnv(4, source=source, autoreset_mode="SameStep")
    envs.reset(seed=0)
    kept = []
    for _ in range(8):
        result = envs.step(np.full(4, 20))
        kept.append((result, copy.deepcopy(result)))
    for result, frozen in kept:
        for infos in (result[4], frozen[4]):  # an array of arrays and None
            infos["final_obs"] = list(infos.get("final_obs", []))
        np.testing.assert_equal(result, frozen)


def test_copy_false_reuses_one_array(source: str) -> None:
    fast, fresh = (VMRVectorEnv(4, source=source, copy=copy) for copy in (False, True))
    first, expected = fast.reset(seed=0)[0], fresh.reset(seed=0)[0]
    np.testing.assert_array_equal(first, expected)
    second = fast.step(np.arange(4))[0]
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second, fresh.step(np.arange(4))[0])


@pytest.mark.parametrize("actions", MODES)
def test_step_gives_python_scalars(make: Make, actions: str) -> None:
    env = make(actions=actions)
    info = env.reset(seed=0)[1]
    assert info["source"] == "real"
    assert type(info["tiou"]) is float
    assert {"qid", "vid", "query", "duration", "sample", "action_mask"} <= set(info)
    assert info["action_mask"].dtype == np.int8
    env.action_space.seed(0)
    _, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert type(info["tiou"]) is float


# Episode ends


def test_step_after_the_end_needs_a_reset(make: Make, source: str) -> None:
    env = make()
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert env.step(env.action_mode.size - 1)[2]
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset()
    env.step(0)

    envs = VMRVectorEnv(3, source=source, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded):
        envs.step(np.zeros(3, int))
    envs.reset(seed=0)
    stop = envs.action_mode.size - 1
    ends = envs.step(np.array([stop, 0, stop]))[2]
    assert ends.tolist() == [True, False, True]
    with pytest.raises(ResetNeeded, match="2 finished"):
        envs.step(np.zeros(3, int))
    envs.reset(options={"reset_mask": ends})
    assert not envs.step(np.zeros(3, int))[2].any()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_mode_is_declared(source: str, mode: AutoresetMode) -> None:
    for given in (mode, mode.value):
        envs = VMRVectorEnv(2, source=source, autoreset_mode=given)
        assert envs.metadata["autoreset_mode"] is mode
        assert envs.autoreset_mode is mode


def test_next_step_ignores_one_action_and_earns_nothing(source: str) -> None:
    envs = VMRVectorEnv(2, source=source, autoreset_mode="NextStep")
    envs.reset(seed=0)
    stop = envs.action_mode.size - 1
    last, _, ends, _, infos = envs.step(np.array([stop, 0]))
    assert ends.tolist() == [True, False]
    assert "final_obs" not in infos
    first, rewards, ends, _, infos = envs.step(np.array([5, 5]))
    assert not ends.any()
    assert rewards[0] == 0
    part = envs.observer.slices["remaining"]
    assert first[0, part] == 1
    assert (last[0] != first[0]).any()
    assert infos["tiou"].shape == (2,)


def test_same_step_keeps_the_end(source: str) -> None:
    envs = VMRVectorEnv(2, source=source, autoreset_mode="SameStep")
    before, infos = envs.reset(seed=0)
    stop = envs.action_mode.size - 1
    seen, rewards, ends, _, infos = envs.step(np.array([stop, 0]))
    assert ends.tolist() == infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False]
    span, remaining = envs.observer.slices["span"], envs.observer.slices["remaining"]
    np.testing.assert_array_equal(infos["final_obs"][0][span], before[0, span])
    assert infos["final_obs"][0][remaining] < seen[0, remaining] == 1
    assert infos["final_info"]["_span"].tolist() == [True, False]
    assert rewards[0] == 0  # stopping at once earns nothing
    assert "final_obs" not in envs.step(np.array([0, 0]))[4]


def structure(value: Any) -> Any:
    """Keys, types and shapes."""
    if isinstance(value, dict):
        return {key: structure(part) for key, part in value.items()}
    return (type(value), value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value)


@pytest.mark.parametrize("actions", MODES)
def test_infos_keep_their_structure(source: str, actions: str) -> None:
    """After every reset and step alike, as recorders such as Minari's and collectors ask for it."""
    env = VMREnv(source=source, actions=actions)
    _, first = env.reset(seed=0)
    for _ in range(3):
        over = False
        while not over:
            *_, over, _, info = env.step(env.action_space.sample())
            assert structure(info) == structure(first)
        _, info = env.reset()
        assert structure(info) == structure(first)
    for mode in ("NextStep", "SameStep"):
        envs = VMRVectorEnv(3, source=source, actions=actions, autoreset_mode=mode)
        _, first_of_all = envs.reset(seed=0)
        for _ in range(12):
            *_, told = envs.step(envs.action_space.sample())
            for part in (told, told.get("final_info", {})):
                kept = {key: one for key, one in part.items() if "final" not in key}
                assert not kept or structure(kept) == structure(first_of_all)
            assert told["qid"].tolist() == [str(envs.cache.sample(row).qid) for row in told["sample"]]
            assert told["vid"].tolist() == [envs.cache.sample(row).vid for row in told["sample"]]
            assert all(told[f"_{key}"].all() for key in ("sample", "qid", "vid", "tiou", "span", "proposal"))


# Copies and processes


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_copies_go_on_alike(make: Make, observation: str, clone: Callable[[VMREnv], VMREnv]) -> None:
    env = make(observation=observation)
    env.reset(seed=3)
    env.step(7)
    twin = clone(env)
    for action in (9, 50, 0):
        result = env.step(action)
        np.testing.assert_equal(twin.step(action), result)
        if result[2]:
            np.testing.assert_equal(twin.reset(), env.reset())
    assert twin.cache is env.cache


def test_pickled_instances_are_small_and_share_the_cache(sources: dict[str, str]) -> None:
    large = make_cache(Path(sources["charades"]).parent / "large", 900, full=True)
    envs: list[Any] = [VMREnv(source=large), VMRVectorEnv(8, source=large)]
    for env in envs:
        env.reset(seed=0)
        packed = pickle.dumps(env)
        assert len(packed) < 2_000_000
        assert pickle.loads(packed).cache is env.cache


def test_vector_environment_copies_go_on_alike(source: str) -> None:
    envs = VMRVectorEnv(5, source=source)
    envs.reset(seed=0)
    twin = pickle.loads(pickle.dumps(envs))
    for _ in range(6):
        np.testing.assert_equal(twin.step(np.arange(5) + 20), envs.step(np.arange(5) + 20))


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_worker_processes_find_the_id(sources: dict[str, str], context: str) -> None:
    options: dict[str, Any] = {"num_envs": 2, "source": sources["qvhighlights"], "stage": 2}
    name = "vmr_env:VMR-QVHighlights-v0"
    native: Any = gymnasium.make_vec(name, **options)
    expected = native.reset(seed=4)[0]
    with warnings.catch_warnings():
        # Python warns of any fork once torch, loaded by other tests, has threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        envs: Any = gymnasium.make_vec(
            name, vectorization_mode="async", vector_kwargs={"context": context}, **options
        )
    try:
        np.testing.assert_array_equal(envs.reset(seed=4)[0], expected)
        actions = np.array([1, 20])
        for got, want in zip(envs.step(actions)[:4], native.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(got, want)
        envs.call("set_stage", 3)
        assert envs.get_attr("stage") == (3, 3)
    finally:
        envs.close()


# Checkers, for every id


def source_of(name: str, sources: dict[str, str]) -> str:
    return sources[gymnasium.spec(name).kwargs["dataset"]]


def test_every_data_set_has_its_ids() -> None:
    words = {profile.env_name for profile in PROFILES.values()}
    for suffix in ("", "-Continuous", "-MultiDiscrete"):
        assert {f"VMR-{word}{suffix}-v0" for word in words} <= set(IDS)


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_checker_is_content(
    name: str, sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmr_env.rendering.window.Window", MagicMock())  # there may be no desktop
    env = gymnasium.make(name, source=source_of(name, sources))
    check_env(env.unwrapped, skip_render_check=NO_RENDERING)
    spec = env.spec
    assert spec is not None
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    np.testing.assert_equal(again.reset(seed=1), env.reset(seed=1))


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines_checker_is_content(name: str, sources: dict[str, str]) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gymnasium.make(name, source=source_of(name, sources))
    checker.check_env(env.unwrapped, skip_render_check=True)


# Stages


def free_groups(env: Any, mask: Any) -> set[str]:
    """Groups of actions of which some are possible."""
    return {group for group, part in env.action_mode.groups.items() if mask[..., part].any()}


@pytest.mark.parametrize(
    ("stage", "free"), [(1, {"move", "stop"}), (2, {"move", "stop"}), (3, {"move", "switch", "stop"})]
)
def test_stage_masks(make: Make, source: str, stage: int, free: set[str]) -> None:
    row = int(np.argmax(VMREnv(source=source).cache.counts))  # has proposals to switch to
    env, spaces = make(stage=stage), make(stage=3)
    assert env.action_space == spaces.action_space
    assert env.observation_space == spaces.observation_space
    info = env.reset(seed=0, options={"sample": row})[1]
    assert free_groups(env, info["action_mask"]) == free
    np.testing.assert_array_equal(env.action_masks(), info["action_mask"])
    env.set_stage(4 - stage)
    assert env.stage == 4 - stage
    for same in (env.step(20)[4]["action_mask"], env.action_masks()):  # a running episode keeps its rules
        assert ("switch" in free_groups(env, same)) == (stage == 3)
    changed = env.reset(seed=0, options={"sample": row})[1]["action_mask"]
    assert ("switch" in free_groups(env, changed)) == (env.stage == 3)


def test_second_stage_starts_at_several_proposals(source: str) -> None:
    for stage, many in ((1, False), (2, True), (3, False)):
        envs = VMRVectorEnv(200, source=source, stage=stage)
        seen = envs.reset(seed=0)[0][:, envs.observer.slices["source"]].argmax(axis=1)
        assert set(seen.tolist()) == ({0, 1, 2} if many else {0})


def test_stage_changes_through_wrappers_and_vector_environments(source: str) -> None:
    env = gymnasium.make("VMR-Charades-v0", source=source)
    env.get_wrapper_attr("set_stage")(2)
    assert env.get_wrapper_attr("stage") == 2

    make_vec: Callable[..., Any] = partial(gymnasium.make_vec, "VMR-Charades-v0", num_envs=2, source=source)
    native, loop = make_vec(), make_vec(vectorization_mode="sync")
    assert isinstance(native.unwrapped, VMRVectorEnv)
    assert isinstance(loop.unwrapped, SyncVectorEnv)
    several: list[Any] = [native, loop, RecordEpisodeStatistics(make_vec())]
    for envs in several:
        envs.unwrapped.call("set_stage", 1)  # Gymnasium's vector wrappers pass no other calls on
        assert envs.unwrapped.get_attr("stage") == (1, 1)
        masks = envs.reset(seed=0)[1]["action_mask"]
        assert not masks[:, 48:-1].any()


def test_stage_changes_through_stable_baselines(source: str) -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec_env.DummyVecEnv([partial(gymnasium.make, "VMR-Charades-v0", source=source)] * 2)
    envs.env_method("set_stage", 2)
    assert envs.get_attr("stage") == [2, 2]
    envs.reset()
    assert not np.stack(envs.env_method("action_masks"))[:, 48:-1].any()


# Sources


def test_simulated_default_warns_and_says_so(
    sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("VMR_ENV_DATA", "VMR_ENV_TOLD"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.warns(UserWarning, match="simulated") as caught:
        env = VMREnv("charades", "val")
    assert len(caught) == 1
    assert env.reset(seed=0)[1]["source"] == "simulated"


def test_cache_in_the_data_folder_is_found(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(sources["tacos"]).parents[1]
    monkeypatch.setenv("VMR_ENV_DATA", str(folder))
    env = gymnasium.make("VMR-TACoS-v0", split="test")
    assert env.reset(seed=0)[1]["source"] == "real"
    assert str(env.get_wrapper_attr("cache").path) == str(Path(sources["tacos"]).resolve())
    with pytest.raises(ValueError, match="tacos/nosplit"):
        gymnasium.make("VMR-TACoS-v0", split="nosplit")


@pytest.mark.parametrize("opened", [False, True])
def test_a_cache_of_another_split_than_asked_for_is_refused(sources: dict[str, str], opened: bool) -> None:
    source: Any = open_cache(sources["tacos"]) if opened else sources["tacos"]
    for make in (VMREnv, partial(VMRVectorEnv, 2)):
        make("tacos", source=source)
        make("tacos", "test", source=source)
        with pytest.raises(DataError, match="split: is a cache of 'test', expected 'foo'"):
            make("tacos", "foo", source=source)


@pytest.mark.parametrize("hours", [0.5, 10])
@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_observations_of_long_videos_are_inside_their_space(
    tmp_path: Path, hours: float, observation: str
) -> None:
    clips = round(3600 * hours)
    rng = np.random.default_rng(0)
    short = random_batch(3, q=4, full=True)
    batch = replace(
        short,
        durations=np.full(3, float(clips)),
        n_clips=np.full(3, clips, np.int32),
        spans=np.tile(np.array([0.0, 1.0], np.float32), (3, 4, 1)),
        counts=np.full(3, 4, np.int32),
        saliency=Ragged.from_rows([rng.normal(size=clips).astype(np.float32) for _ in range(3)]),
        clips=Ragged.from_rows([rng.normal(size=(clips, 2)).astype(np.float32) for _ in range(3)]),
    )
    source = write_cache(tmp_path / "long", batch, **ARGUMENTS)
    for actions in ("discrete", "continuous", "multidiscrete"):
        env = VMREnv(source=source, actions=actions, observation=observation, proposals=4)
        env.action_space.seed(0)
        for seed in range(5):
            shown, _ = env.reset(seed=seed)
            done = False
            while not done:
                assert env.observation_space.contains(shown)
                shown, _, done, _, _ = env.step(env.action_space.sample())
            assert env.observation_space.contains(shown)


def test_the_bound_of_lengths_holds_for_every_number_of_clips_that_a_cache_counts() -> None:
    assert float(log_length(np.float32(2**31))) < LENGTH_BOUND


# Bad input

BAD_ARGUMENTS: list[Any] = [
    ({"dataset": "charade"}, "charades"),
    ({"dataset": None}, "None"),
    ({"source": "/no/such/folder"}, "/no/such/folder"),
    ({"source": __file__}, "test_env_guarantees.py"),
    ({"dataset": "tacos"}, "cache of charades, expected tacos"),
    ({"samples": []}, "samples"),
    ({"samples": [0, 20]}, "samples, row 2: is 20, expected 0 to 19"),
    ({"samples": [-1]}, "samples, row 1: is -1"),
    ({"samples": [0.5]}, "samples: .*float64"),
    ({"samples": [[1, 2]]}, r"samples: .*\(1, 2\)"),
    ({"samples": "all"}, "samples"),
    ({"stage": 0}, "stage .*0"),
    ({"stage": 4}, "stage .*4"),
    ({"stage": True}, "stage .*True"),
    ({"stage": "two"}, "stage .*'two'"),
    ({"stage": [1]}, r"stage .*\[1\]"),
    ({"actions": "discret"}, "'discret'.* Did you mean 'discrete'"),
    ({"actions": None}, "None"),
    ({"components": []}, "components is empty"),
    ({"components": ["span", "pionts"]}, "'pionts'.* Did you mean 'points'"),
    ({"components": ["span", "span"]}, "twice"),
    ({"components": [3]}, "3"),
    ({"observation": "box"}, "'box'"),
    ({"proposals": 0}, "proposals is 0"),
    ({"proposals": 2.0}, "proposals is 2.0"),
    ({"proposals": True}, "proposals is True"),
    ({"horizon": 0}, "horizon is 0"),
    ({"free": ("stop",)}, "free names 'stop', expected some of move, switch"),
    ({"free": "swich"}, "free names 'swich'"),
    ({"free": ("switch",), "actions": "continuous"}, "free is .'switch'., expected 'move' among them"),
    ({"horizon": "6"}, "horizon is '6'"),
    ({"horizon": True}, "horizon is True"),
    ({"reward": "tiuo"}, "'tiuo'.* Did you mean 'tiou'"),
    ({"reward": 1}, "reward 1"),
]

BAD_SINGLE: list[tuple[dict[str, Any], str]] = [({"render_mode": "humans"}, "'humans'.*rgb_array")]

BAD_VECTOR: list[tuple[dict[str, Any], str]] = [
    ({"num_envs": 0}, "num_envs is 0"),
    ({"num_envs": 2.5}, "num_envs is 2.5"),
    ({"num_envs": True}, "num_envs is True"),
    ({"render_mode": "ansi"}, "render_mode is 'ansi'"),
    ({"autoreset_mode": "nextstep"}, "'nextstep'"),
    ({"autoreset_mode": None}, "None"),
]

BAD_OPTIONS: list[tuple[Any, str]] = [
    ({"qids": 3}, "'qids'"),
    ({"qid": 999}, "999"),
    ({"sample": 20}, "'sample'.* 20"),
    ({"sample": -1}, "'sample'.* -1"),
    ({"sample": 1.0}, "'sample'.* 1.0"),
    ({"sample": "first"}, "'sample'.* 'first'"),
    ({"sample": [0, 1, 2]}, "'sample'"),
    ({"start": 4}, "'start'.* 4"),
    ({"start": None}, "'start'.* None"),
]

BAD_ACTIONS: list[tuple[str, Any]] = [
    ("discrete", -1),
    ("discrete", 53),
    ("discrete", 1.5),
    ("discrete", None),
    ("discrete", "stop"),
    ("discrete", [0, 1]),
    ("multidiscrete", 3),
    ("multidiscrete", np.array([7, 0])),
    ("multidiscrete", np.array([0.5, 0.5])),
    ("continuous", np.array([0, -np.inf], np.float32)),
    ("continuous", np.array([np.nan, 0], np.float32)),
    ("continuous", np.zeros(3, np.float32)),
]


def assert_refused(call: Callable[[], object], says: str) -> None:
    """One error of a kind that callers expect, in few words."""
    with pytest.raises((ValueError, Error), match=says) as caught:
        call()
    assert len(str(caught.value)) < 800
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("arguments", "says"), [*BAD_ARGUMENTS, *BAD_SINGLE])
def test_wrong_arguments(source: str, arguments: dict[str, Any], says: str) -> None:
    assert_refused(lambda: VMREnv(**{"source": source, **arguments}), says)


@pytest.mark.parametrize(("arguments", "says"), [*BAD_ARGUMENTS, *BAD_VECTOR])
def test_wrong_vector_arguments(source: str, arguments: dict[str, Any], says: str) -> None:
    assert_refused(lambda: VMRVectorEnv(**{"num_envs": 2, "source": source, **arguments}), says)


@pytest.mark.parametrize(("options", "says"), BAD_OPTIONS)
def test_wrong_options(make: Make, source: str, options: dict[str, Any], says: str) -> None:
    env, envs = make(), VMRVectorEnv(2, source=source)
    several: list[Any] = [env, envs]
    for one in several:
        one.reset(seed=0)
        assert_refused(partial(one.reset, options=options), says)


def test_wrong_seeds_and_masks(make: Make, source: str) -> None:
    assert_refused(lambda: make().reset(seed=-1), "-1")
    envs = VMRVectorEnv(3, source=source, autoreset_mode="Disabled")
    assert_refused(lambda: envs.reset(seed=-1), "-1")
    assert_refused(lambda: envs.reset(seed=[1, 2]), "2 entries, expected one or 3")
    for mask in ([True], np.array([1, 0, 1]), np.zeros(3, bool), "all"):
        assert_refused(partial(envs.reset, options={"reset_mask": mask}), "reset_mask")


@pytest.mark.parametrize(("actions", "action"), BAD_ACTIONS)
def test_wrong_actions_change_nothing(make: Make, actions: str, action: Any) -> None:
    env, twin = make(actions=actions), make(actions=actions)
    env.reset(seed=0)
    twin.reset(seed=0)
    assert_refused(lambda: env.step(action), "action.* expected a member of")
    good = env.action_space.sample()
    np.testing.assert_equal(env.step(good), twin.step(good))


@pytest.mark.parametrize("actions", [[0], [0, 53], [0.5, 0], [[0, 1]], None, ["a", "b"]])
def test_wrong_vector_actions_change_nothing(source: str, actions: Any) -> None:
    envs, twins = (VMRVectorEnv(2, source=source) for _ in range(2))
    envs.reset(seed=0)
    twins.reset(seed=0)
    assert_refused(lambda: envs.step(actions), "actions?.* expected")
    np.testing.assert_equal(envs.step([1, 2]), twins.step([1, 2]))


def test_old_gymnasium_is_named() -> None:
    code = "import gymnasium.vector as v; del v.AutoresetMode; import vmr_env.envs.vector_env"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: The native vector environment needs gymnasium 1.1 or later, found ")


def test_set_stage_refuses_what_is_no_stage(make: Make) -> None:
    env = make(stage=2)
    assert_refused(lambda: env.set_stage(9), "9")
    assert env.stage == 2
