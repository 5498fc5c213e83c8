"""Parts from a package outside of this one: a data set, in this process and in every kind of worker."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import ARGUMENTS, random_batch
from outside import install_outside, run_outside

import vmr_env
from vmr_env.caches.reader import Ragged, write_cache
from vmr_env.data.profiles import PROFILES, DatasetProfile, add_profile

PLUGIN = """
import vmr_env

COOKING = vmr_env.DatasetProfile(name="cooking", env_name="Cooking", clip_seconds=0.5, max_clips=400)
vmr_env.register_dataset(COOKING)
"""

USE = """
import json, multiprocessing, sys
import gymnasium
import vmr_env


def episode(source):
    env = gymnasium.make("VMR-Cooking-v0", source=source)
    _, info = env.reset(seed=0)
    return env.unwrapped.dataset if hasattr(env.unwrapped, "dataset") else "cooking", float(info["tiou"])


if __name__ == "__main__":
    annotations = [
        {"qid": i, "query": "stir", "duration": 60.0, "vid": f"v{i}", "relevant_windows": [[10, 30]]}
        for i in range(4)
    ]
    predictions = [
        {"qid": i, "query": "stir", "vid": f"v{i}", "pred_relevant_windows": [[10, 20, 0.9], [30, 60, 0.2]]}
        for i in range(4)
    ]
    for name, rows in (("a.jsonl", annotations), ("p.jsonl", predictions)):
        with open(name, "w") as file:
            file.writelines(json.dumps(row) + "\\n" for row in rows)
    profile = vmr_env.get_profile("cooking")
    source = str(vmr_env.build_prediction_cache("cache", "p.jsonl", "a.jsonl", profile, "train"))
    found = [episode(source)[1]]
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            found.append(pool.apply(episode, (source,))[1])
    vector = gymnasium.make_vec("VMR-Cooking-v0", num_envs=2, source=source)
    found.append(float(vector.reset(seed=0)[1]["tiou"][0]))
    print(json.dumps(found))
"""


PARTS = """
import numpy as np
import vmr_env
from vmr_env.envs.actions import Moves
from vmr_env.envs.curriculum import Curriculum, Stage
from vmr_env.envs.observations import Component
from vmr_env.envs.rewards import Reward


def nearness(episodes):
    return -abs(episodes.spans - episodes.moments[:, 0]).sum(axis=1)


NEAR = Reward(nearness, lambda episodes, ended: np.where(ended, 2.0, -0.5))
CLOCK = Component((2,), look_up=lambda them: np.stack([them.steps / 4, them.tiou], axis=1))
HOUR = Moves("listed", ((-600.0, -60.0, 0.0, 60.0, 600.0),), horizon=4)
FOUR = Curriculum(
    (
        Stage("boundaries", actions=("move",)),
        Stage("choice", actions=("switch",), start_k=2),
        Stage("both", reward="giou"),
        Stage("near", reward="cooking_plugin:NEAR"),
    )
)
"""

REGISTER_PARTS = """
vmr_env.register_reward("near", NEAR.potential, NEAR.term)
vmr_env.register_component("clock", CLOCK.shape, CLOCK.look_up)
vmr_env.register_action_mode("hour", HOUR.form, HOUR.offsets, HOUR.horizon)
vmr_env.register_curriculum("four", *FOUR.stages)
"""

USE_PARTS = """
import json, multiprocessing, sys
import gymnasium
import numpy as np
import vmr_env
from vmr_env.envs.curriculum import StepSchedule
from vmr_env.envs.vector_wrappers import VectorCurriculumWrapper
from vmr_env.envs.wrappers import CurriculumWrapper

OPTIONS = {"source": sys.argv[1], **json.loads(sys.argv[2])}
TAKEN = ("start +0, end -60 clips", "switch to proposal 2", "stop")


def walk(options):
    env = gymnasium.make("VMR-Charades-v0", **options)
    env.reset(seed=0)
    names = env.unwrapped.get_action_meanings()
    steps = [env.step(names.index(name))[:3] for name in TAKEN]
    return [[*seen[:2].tolist(), reward, over] for seen, reward, over in steps]


def free(mask):
    return bool(mask[:-3].any()), bool(mask[-3:-1].any())


def climb(options):
    # Stages by rule, and whether moves and switches are free in them; every episode is one step.
    env = CurriculumWrapper(gymnasium.make("VMR-Charades-v0", **options), StepSchedule((1, 2, 3)))
    seen = []
    for _ in range(5):
        _, info = env.reset(seed=0)
        seen.append([info["stage"], *free(info["action_mask"])])
        env.step(env.action_space.n - 1)
    return seen


def told(options):
    return [walk(options), climb(options)]


if __name__ == "__main__":
    found = [told(OPTIONS)]
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            found.append(pool.apply(told, (OPTIONS,)))
    envs = gymnasium.make_vec("VMR-Charades-v0", num_envs=1, **OPTIONS)
    envs.reset(seed=0)
    names = envs.unwrapped.get_action_meanings()
    steps = [envs.step(np.array([names.index(name)]))[:3] for name in TAKEN]
    walked = [[*seen[0, :2].tolist(), float(reward[0]), bool(over[0])] for seen, reward, over in steps]
    made = gymnasium.make_vec("VMR-Charades-v0", num_envs=1, **OPTIONS)
    envs = VectorCurriculumWrapper(made, StepSchedule((1, 2, 3)))
    climbed, (_, infos) = [], envs.reset(seed=0)
    for stage in (1, 2, 3, 4, 4):
        climbed.append([envs.progression.stage, *free(infos["action_mask"][0])])
        for _ in range(2):  # stop, and begin
            *_, infos = envs.step(np.array([len(names) - 1]))
    found.append([walked, climbed])
    print(json.dumps(found))
"""


def test_a_data_set_from_outside_exists_in_every_kind_of_process(tmp_path: Path) -> None:
    install_outside(tmp_path, PLUGIN)
    done = run_outside(tmp_path, USE)
    assert done.returncode == 0, done.stderr
    tious = json.loads(done.stdout)
    assert len(tious) >= 3
    assert tious == pytest.approx([0.5] * len(tious))  # [10, 20] against [10, 30]


BY_NAME = {"reward": "near", "actions": "hour", "components": ["clock", "span"], "curriculum": "four"}
BY_MODULE = {
    "reward": "cooking_plugin:NEAR",
    "actions": "cooking_plugin:HOUR",
    "components": ["cooking_plugin:CLOCK", "span"],
    "curriculum": "cooking_plugin:FOUR",
}


@pytest.mark.parametrize("options", [BY_NAME, BY_MODULE], ids=["registered", "module:name"])
def test_reward_component_action_mode_and_curriculum_frominstall_outside(
    tmp_path: Path, options: dict[str, object]
) -> None:
    """In an hour-long video, in every kind of process and in the vector environment."""
    batch = random_batch(1, q=2)
    seconds = 3600.0
    batch = replace(
        batch,
        durations=np.array([seconds]),
        n_clips=np.array([3600], np.int32),
        counts=np.array([2], np.int32),
        moments=Ragged.from_rows([np.array([[1000.0, 1800.0]])]),
        spans=np.array([[[1000, 2000], [600, 1500]]], np.float32) / np.float32(seconds),
        saliency=None,
    )
    source = write_cache(tmp_path / "cache", batch, **ARGUMENTS)
    registered = options is BY_NAME
    install_outside(tmp_path, PARTS + REGISTER_PARTS * registered, plugin=registered)
    done = run_outside(tmp_path, USE_PARTS, str(source), json.dumps(options))
    assert done.returncode == 0, done.stderr
    walks, climbs = zip(*json.loads(done.stdout), strict=True)
    expected = [  # share of the steps, tIoU, change of nearness and the term, whether it is over
        [0.25, 800 / 940, 60 / seconds - 0.5, False],
        [0.5, 500 / 1200, (140 - 700) / seconds - 0.5, False],
        [0.75, 500 / 1200, 2.0, True],
    ]
    assert len(walks) >= 3
    for walk in walks:
        np.testing.assert_allclose(walk, expected, atol=1e-4)
    freed = [(True, False), (False, True), (True, True), (True, True), (True, True)]
    for climb in climbs:
        assert climb == [[stage, *free] for stage, free in zip((1, 2, 3, 4, 4), freed, strict=True)]


def test_a_broken_plugin_is_named_and_does_not_stop_the_import(tmp_path: Path) -> None:
    install_outside(tmp_path, "1 / 0\n")
    done = run_outside(tmp_path, "import vmr_env, sys; print(len(vmr_env.__all__))")
    assert done.returncode == 0
    assert int(done.stdout) == len(vmr_env.__all__)
    assert "plugin 'cooking' (cooking_plugin)" in done.stderr
    assert "ZeroDivisionError" in done.stderr


METRIC = """
import numpy as np
import vmr_env
from vmr_env.envs.curriculum import Curriculum, Stage
from vmr_env.agents.base import Agent


def missed_seconds(prediction, annotation):
    start, end = annotation.moments[0]
    low, high = prediction.windows[0, :2]
    return float((end - start) - max(min(end, high) - max(start, low), 0))


vmr_env.register_metric("missed s", missed_seconds)


class Stopping(Agent):
    num_envs = 4
    rounds = 3

    def update(self):
        self.env.reset(seed=0)
        with open("stages.txt", "a") as file:
            print(self.env.stage, file=file)
        self.env.step(np.full(4, self.env.single_action_space.n - 1))
        return {"charts/episode_return": 0.0}

    def act(self, observations, masks):
        return np.full(len(masks), masks.shape[1] - 1)


TWO = Curriculum((Stage("moves", actions=("move",)), Stage("all")))
"""

USE_METRIC = """
import json, sys
from vmr_env.benchmarks.run_tprl import main
from vmr_env.data.annotations import Annotation
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.predictions import read_predictions
from vmr_env.data.profiles import get_profile
from vmr_env.simulation.simulator import simulate
from cooking_plugin import missed_seconds

if __name__ == "__main__":
    for split, samples in (("train", 12), ("test", 8)):
        simulate(split, get_profile("charades"), split, samples=samples)
    agent = ["--agents", "cooking_plugin:Stopping", "--members", "2", "--jobs", "1", "--seeds", "1"]
    stages = ["--stages", "cooking_plugin:TWO", "--curriculum", "8"]
    assert main(["--cache", "train", "--test-cache", "test", *agent, *stages, "--out", "out"]) == 0
    cache = DecoderStateCache.open("test")
    samples = [cache.sample(i) for i in range(len(cache))]
    answers = read_predictions("out/submission-cooking_plugin.Stopping-seed0.jsonl")
    truth = [Annotation(s.qid, s.vid, s.query, s.duration, s.moments) for s in samples]
    print(sum(map(missed_seconds, answers, truth)) / len(truth))
"""


def test_metric_agent_and_curriculum_from_outside_in_arun_outside(tmp_path: Path) -> None:
    install_outside(tmp_path, METRIC)
    done = run_outside(tmp_path, USE_METRIC)
    assert done.returncode == 0, done.stderr
    # Each of two members takes 4 steps a round, and the second stage begins after 8.
    assert (tmp_path / "stages.txt").read_text().split() == ["1", "1", "2"] * 2
    mean = float(done.stdout.splitlines()[-1])
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    header, _, *rows = (line for line in lines if line.startswith("|"))
    columns = [cell.strip() for cell in header.split("|")]
    cells = [cell.strip() for cell in rows[-1].split("|")]
    assert float(cells[columns.index("missed s")]) == pytest.approx(mean, abs=0.006)
    assert cells[columns.index("Δ missed s")] == "+0.00 [+0.00, +0.00]"  # an agent that stops at once
    page = (tmp_path / "out" / "report.html").read_text()
    heads = re.findall(r'<th scope="col">(.*?)missed s</th>', page)
    assert [re.sub("<.*?>", "", head).strip() for head in heads] == ["", "Δ"]


def test_every_public_name_is_there_and_completes() -> None:
    for name in vmr_env.__all__:
        assert getattr(vmr_env, name).__name__ == name
        assert name in dir(vmr_env)
    with pytest.raises(AttributeError, match="no_such_thing"):
        vmr_env.no_such_thing  # noqa: B018


@pytest.mark.parametrize(("name", "env_name"), [("charades", "Other"), ("other", "Charades")])
def test_names_that_are_taken_are_refused(name: str, env_name: str) -> None:
    before = dict(PROFILES)
    with pytest.raises(ValueError, match="choose other names"):
        add_profile(DatasetProfile(name=name, env_name=env_name, clip_seconds=1, max_clips=10))
    assert dict(PROFILES) == before
    add_profile(PROFILES["charades"])  # the same one again
    assert dict(PROFILES) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "No Word"),
        ("env_name", "a-b"),
        ("clip_seconds", 0),
        ("max_clips", float("nan")),
        ("splits", ()),
    ],
)
def test_bad_profiles_are_refused_by_field(field: str, value: object) -> None:
    good = {"name": "own", "env_name": "Own", "clip_seconds": 1, "max_clips": 10}
    with pytest.raises(ValueError, match=field):
        DatasetProfile(**(good | {field: value}))
