"""The native vector environment against Gymnasium's loop over single ones: equal at every step."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import ARGUMENTS, make_cache, random_batch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from refinement import user_cache_in
from walks import varied_actions

from vmr_env.caches.reader import write_cache
from vmr_env.envs.env import VMREnv
from vmr_env.envs.vector_env import VMRVectorEnv
from vmr_env.seeding import slot_seeds

N, STEPS = 6, 16
SEEDS: list[int | None] = [11, 5, 5, 900, 0, 7]

Info = dict[str, Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with user_cache_in(tmp_path_factory.mktemp("vector")) as folder:
        batch = replace(random_batch(30, full=True), qids=list(range(100, 130)))
        yield write_cache(folder / "cache", batch, **ARGUMENTS)


def assert_same_infos(native: Info, single: Info, keys: tuple[str, ...]) -> None:
    """Equal presence and, where present, equal values."""
    for key in keys:
        assert (key in native) == (key in single), key
        if key not in native:
            continue
        present = native[f"_{key}"]
        np.testing.assert_array_equal(present, single[f"_{key}"], err_msg=key)
        got = np.stack(list(native[key][present]))
        np.testing.assert_array_equal(got, np.stack(list(single[key][present])), err_msg=key)


def assert_same_step(native: tuple[Any, ...], single: tuple[Any, ...]) -> None:
    """Equal observations, rewards, ends and infos."""
    for got, expected in zip(native[:4], single[:4], strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    keys = ("tiou", "action_mask", "span", "proposal", "final_obs")
    assert_same_infos(native[4], single[4], keys)
    assert ("final_info" in native[4]) == ("final_info" in single[4])
    if "final_info" in native[4]:
        np.testing.assert_array_equal(native[4]["_final_info"], single[4]["_final_info"])
        finals = native[4]["final_info"], single[4]["final_info"]
        assert_same_infos(*finals, ("tiou", "action_mask", "span", "proposal"))


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("actions", ["discrete", "multidiscrete", "continuous"])
def test_native_equals_loop(source: Path, actions: str, stage: int, autoreset: AutoresetMode) -> None:
    options: dict[str, Any] = {"source": source, "actions": actions, "stage": stage}
    loop = SyncVectorEnv([partial(VMREnv, **options)] * N, autoreset_mode=autoreset)
    native = VMRVectorEnv(N, autoreset_mode=autoreset, **options)
    assert native.single_observation_space == loop.single_observation_space
    assert native.observation_space == loop.observation_space
    assert native.action_space == loop.action_space

    got, expected = native.reset(seed=SEEDS), loop.reset(seed=SEEDS)
    np.testing.assert_array_equal(got[0], expected[0])
    assert_same_infos(got[1], expected[1], ("tiou", "action_mask", "sample"))

    rng = np.random.default_rng(0)
    native.action_space.seed(1)
    ends = 0
    for _ in range(STEPS):
        taken = varied_actions(native, rng)
        step = native.step(taken)
        assert_same_step(step, loop.step(taken))
        ends += int(step[2].sum())
    assert ends >= N  # autoreset was at work


@pytest.mark.parametrize(
    "options",
    [
        {"reward": "step"},
        {"free": ("switch",), "proposals": 4},
        {"free": ["move"], "stage": 3},
        {"reward": "tiou_step", "horizon": 1},
        {"proposals": 2, "samples": [3, 5, 8, 13]},
        {"components": ["text", "models", "inside", "decoder_state", "span"], "stage": 2},
    ],
)
def test_native_equals_loop_with_options(source: Path, options: dict[str, Any]) -> None:
    loop = SyncVectorEnv([partial(VMREnv, source=source, **options)] * N)
    native = VMRVectorEnv(N, source=source, **options)
    np.testing.assert_array_equal(native.reset(seed=SEEDS)[0], loop.reset(seed=SEEDS)[0])
    rng = np.random.default_rng(1)
    native.action_space.seed(2)
    for step in range(STEPS):
        if step == STEPS // 2:  # in the middle of episodes
            native.call("set_stage", 1)
            loop.call("set_stage", 1)
        taken = varied_actions(native, rng)
        assert_same_step(native.step(taken), loop.step(taken))


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_names_the_new_samples(source: Path, autoreset: AutoresetMode) -> None:
    loop = SyncVectorEnv([partial(VMREnv, source=source)] * 3, autoreset_mode=autoreset)
    native = VMRVectorEnv(3, source=source, autoreset_mode=autoreset)
    stop = native.action_mode.size - 1
    loop.reset(seed=[0, 1, 2])
    native.reset(seed=[0, 1, 2])
    for actions in ([stop, 0, stop], [0, 0, 0]):
        assert_same_infos(native.step(actions)[4], loop.step(np.array(actions))[4], ("sample",))


def test_one_seed_gives_each_slot_its_own(source: Path) -> None:
    native = VMRVectorEnv(4, source=source)
    loop = SyncVectorEnv([partial(VMREnv, source=source)] * 4)
    seeds = slot_seeds(21, 4)
    np.testing.assert_array_equal(native.reset(seed=21)[0], loop.reset(seed=seeds)[0])
    np.testing.assert_array_equal(native.reset()[0], loop.reset()[0])
    assert len({*seeds, *slot_seeds(22, 4)}) == 8


def test_a_vector_of_one_is_the_single_environment(source: Path) -> None:
    native, single = VMRVectorEnv(1, source=source), VMREnv(source=source)
    np.testing.assert_array_equal(native.reset(seed=21)[0][0], single.reset(seed=21)[0])
    np.testing.assert_array_equal(native.reset()[0][0], single.reset()[0])


def test_qids_of_two_types_stand_in_one_loop(source: Path) -> None:
    mixed = make_cache(source.parent / "mixed", 2)
    loop = SyncVectorEnv([partial(VMREnv, source=mixed, samples=[row]) for row in (1, 0)])
    assert list(loop.reset(seed=0)[1]["qid"]) == ["1", "q0"]


def test_dict_observations_hold_what_flat_ones_do(source: Path) -> None:
    flat = VMRVectorEnv(3, source=source)
    named = VMRVectorEnv(3, source=source, observation="dict")
    rows, parts = flat.reset(seed=0)[0], named.reset(seed=0)[0]
    assert set(parts) == set(flat.observer.slices)
    for name, part in flat.observer.slices.items():
        np.testing.assert_array_equal(parts[name].reshape(3, -1), rows[:, part])
    single = VMREnv(source=source, observation="dict").reset(seed=slot_seeds(0, 3)[1])[0]
    for name, value in single.items():
        np.testing.assert_array_equal(value, parts[name][1])


def test_named_samples_and_starts(source: Path) -> None:
    native = VMRVectorEnv(3, source=source)
    qids = native.cache.qids()
    chosen = [4, 0, 29]
    starts = [int(count) - 1 for count in native.cache.counts[chosen]]
    by_row, infos = native.reset(seed=0, options={"sample": chosen, "start": starts})
    by_qid, _ = native.reset(options={"qid": [qids[row] for row in chosen], "start": starts})
    np.testing.assert_array_equal(infos["sample"], chosen)
    np.testing.assert_array_equal(by_row, by_qid)
    env = VMREnv(source=source)
    for slot, (row, start) in enumerate(zip(chosen, starts, strict=True)):
        observation, info = env.reset(options={"qid": qids[row], "start": start})
        np.testing.assert_array_equal(observation, by_row[slot])
        assert (info["sample"], info["qid"]) == (row, str(qids[row]))


def test_reset_mask_leaves_the_others_alone(source: Path) -> None:
    native = VMRVectorEnv(4, source=source, autoreset_mode="Disabled", horizon=2)
    before, _ = native.reset(seed=0)
    mask = np.array([True, False, True, False])
    after, infos = native.reset(options={"reset_mask": mask})
    assert infos["_sample"].all()
    np.testing.assert_array_equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).any()


def test_final_observations_are_what_disabled_autoreset_shows(source: Path) -> None:
    same, disabled = (
        VMRVectorEnv(N, source=source, autoreset_mode=mode, horizon=1) for mode in ("SameStep", "Disabled")
    )
    same.reset(seed=0)
    disabled.reset(seed=0)
    actions = np.arange(N)
    first, _, _, _, infos = same.step(actions)
    last, _, ends, _, last_infos = disabled.step(actions)
    assert ends.all()
    finals = np.stack(list(infos["final_obs"]))
    np.testing.assert_array_equal(finals, last)
    assert (finals != first).any(axis=1).all()
    final = infos["final_info"]
    for key in ("tiou", "span", "proposal", "action_mask"):
        np.testing.assert_array_equal(final[key], last_infos[key])
