"""The environment of the detection head, and the head as Stable-Baselines3's policy in it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from backbone import Backbone, make_backbone
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeAwareObservation
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from test_tprl import new_head, same, write_states

from vmr_env.agents.sb3.head_config import SB3HeadConfig
from vmr_env.agents.sb3.head_policy import HeadActorCriticPolicy, HeadDistribution
from vmr_env.agents.sb3.head_trainer import SB3HeadTrainer
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.head_policy import HeadPolicy, HeadPolicyTrainer, head_policy_config
from vmr_env.backbones.girl_detr.checkpoint import load_checkpoint
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.envs.curriculum import STAGES
from vmr_env.envs.head_env import VMRHeadEnv
from vmr_env.envs.sources import simulated_source
from vmr_env.errors import DataError

ID = "vmr_env:VMR-Charades-Head-v0"
Pair = tuple[DecoderStateCache, DecoderStateCache]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def cache(backbone: Backbone) -> DecoderStateCache:
    return DecoderStateCache.open(backbone.caches / "train")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Caches whose decoder states know the moment."""
    folder = tmp_path_factory.mktemp("caches")
    return write_states(folder / "train", 0), write_states(folder / "val", 1)


@pytest.mark.filterwarnings("ignore:.*no cache given", "ignore:.*Box action space")
def test_gymnasium_checks_it() -> None:
    check_env(gymnasium.make(ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("form", [Path, str, DecoderStateCache])
def test_its_specification_in_json_makes_the_same_environment(cache: DecoderStateCache, form: Any) -> None:
    source = cache if form is DecoderStateCache else form(cache.path)
    env = gymnasium.make(ID, source=source, samples=range(1, 4), stage=2)
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_equal(again.reset(seed=1), env.reset(seed=1))
    assert (env.spec.max_episode_steps, again.unwrapped.stage) == (1, 2)
    aware = TimeAwareObservation(env, flatten=False, normalize_time=True)
    aware.reset(seed=0)
    assert aware.step(np.full((5, 3), 0.5, np.float32))[0]["time"] == 1


def overlap(span: np.ndarray, moments: np.ndarray, generalised: bool) -> float:
    """The highest (generalised) IoU of a span with a moment, in plain Python."""
    values = []
    for low, high in moments.tolist():
        common = max(0.0, min(span[1], high) - max(span[0], low))
        union = span[1] - span[0] + high - low - common
        hull = max(span[1], high) - min(span[0], low)
        values.append(common / union - ((hull - union) / hull if generalised else 0))
    return max(values)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_most_probable_choosable_proposal_answers_and_earns_the_gain(
    cache: DecoderStateCache, stage: int
) -> None:
    env, rng, starts = VMRHeadEnv(source=cache, stage=stage), np.random.default_rng(0), set()
    for row in range(len(cache)):
        observation, info = env.reset(options={"sample": row})
        start = info["proposal"]
        starts.add(start)
        assert (observation["choosable"] == (1 if stage == 3 else np.arange(5) == start)).all()
        action = rng.uniform(0.05, 0.95, (5, 3)).astype(np.float32)
        chosen = int(action[:, 2].argmax()) if stage == 3 else start
        centre, width = action[chosen, :2].astype(float)
        span = np.clip([centre - width / 2, centre + width / 2], 0, 1)
        moments = cache.sample(row).moments / cache.sample(row).duration
        after, before = (
            overlap(one, moments, stage == 1) for one in (span, cache.spans[row, start].astype(float))
        )
        _, reward, terminated, truncated, info = env.step(action)
        assert (terminated, truncated, info["proposal"]) == (True, False, chosen)
        assert reward == pytest.approx(after - before, abs=1e-5)
        assert info["tiou"] == pytest.approx(overlap(span, moments, False), abs=1e-5)
        np.testing.assert_allclose(info["span"], span * info["duration"], rtol=1e-5, atol=1e-5)
    assert starts == ({0, 1, 2} if stage == 2 else {0})


def test_it_shows_the_answer_beside_the_detector_s(cache: DecoderStateCache) -> None:
    env = VMRHeadEnv(source=cache, render_mode="ansi")
    with pytest.raises(gymnasium.error.ResetNeeded, match="expected reset first"):
        env.render()
    observation, _ = env.reset(options={"sample": 3})
    assert "step 0 of 1 · from proposal 1" in env.render()
    action = observation["proposals"]
    action[2] = 0.5, 0.5, 1
    *_, info = env.step(action)
    shown = env.render()
    quarter = info["duration"] / 4
    assert f"{quarter:.1f}–{3 * quarter:.1f} s" in shown
    assert "step 1 of 1" in shown
    assert "from proposal 3" in shown
    pytest.importorskip("PIL", reason="needs the extra bench")
    pictured = VMRHeadEnv(source=cache, render_mode="rgb_array")
    pictured.reset(seed=0)
    assert pictured.render().shape == (540, 960, 3)


def test_a_new_stage_rules_from_the_next_episode(cache: DecoderStateCache) -> None:
    env = VMRHeadEnv(source=cache, stage=1)
    observation, _ = env.reset(seed=0)
    env.set_stage(3)
    action = observation["proposals"].copy()
    action[3, 2] = 1  # may not be chosen yet
    assert env.step(action)[4]["proposal"] == 0
    env.reset()
    assert env.step(action)[4]["proposal"] == 3


@pytest.mark.filterwarnings("ignore:no cache given")
@pytest.mark.parametrize("stage", [1, 3])
def test_the_untrained_head_answers_as_the_frozen_detector_does(
    stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMR_ENV_DATA", raising=False)
    cache = DecoderStateCache.open(simulated_source("charades", "val"))
    head = load_checkpoint(cache.path.parent / "girl_detr").head
    env = gymnasium.make(ID, split="val", stage=stage)
    model = PPO(HeadActorCriticPolicy, env, policy_kwargs={"network": HeadPolicy(head, 0.1)}, device="cpu")
    observations = [env.reset(options={"sample": row})[0] for row in range(200)]
    for row, observation in enumerate(observations):
        env.reset(options={"sample": row})
        action, _ = model.predict(observation, deterministic=True)
        _, reward, _, _, info = env.step(action)
        assert info["proposal"] == 0
        assert reward == pytest.approx(0, abs=2e-3)  # states are kept in half precision
        np.testing.assert_allclose(info["span"] / info["duration"], cache.spans[row, 0], atol=1e-3)
        env.reset(options={"sample": row})
        assert env.step(observation["proposals"])[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_our_algorithms_meet_the_same_episodes(
    backbone: Backbone, cache: DecoderStateCache, number: int
) -> None:
    """`head_ppo` and its like learn in batches; each of their draws is an action of the environment."""
    trainer = HeadPolicyTrainer(
        load_checkpoint(backbone.weights).head, replace(head_policy_config("grpo"), group=4, std=0.3), seed=1
    )
    trainer.start_epoch(0)
    batches = StateBatches(cache)
    batch = batches.take(batches.rows)
    drawn = trainer.draw(batch, STAGES[number])
    started = set()
    for row in range(len(cache)):
        came = trainer.came(batch.states[row], batch.references[row])
        order = (came.logits[:, 1] - came.logits[:, 0]).argsort(stable=True).tolist()
        assert order == list(range(5))  # a cache has them by falling score
        for choice, bounds, reward in zip(
            drawn.choice[row], drawn.bounds[row], drawn.rewards[row], strict=True
        ):
            low, high = bounds.clamp(0, 1).sort().values
            action = np.zeros((5, 3), np.float32)
            action[choice] = (low + high) / 2, high - low, 1
            env = VMRHeadEnv(source=cache, stage=number)
            env.reset(options={"sample": row, "start": 0 if number == 3 else int(choice)})
            assert env.step(action)[1] == pytest.approx(reward.item(), abs=1e-4)
        started |= set(drawn.choice[row].tolist())
    assert len(started) == {1: 1, 2: 3, 3: 5}[number]


def distribution(
    cache: DecoderStateCache, choosable: torch.Tensor
) -> tuple[HeadDistribution, HeadPolicy, Any]:
    batches = StateBatches(cache)
    batch = batches.take(np.arange(len(choosable)))
    torch.manual_seed(0)
    network = HeadPolicy(new_head(), 0.2)
    said = network(batch.states, batch.references)
    proposals = torch.rand(*said.bounds.shape[:2], 3)
    observed = {"choosable": choosable, "proposals": proposals}
    return HeadDistribution(network).proba_distribution(said, observed), network, (said, proposals[..., 1])


def test_log_probabilities_and_entropy_equal_pytorch_s(caches: Pair) -> None:
    choosable = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0]])
    found, network, (said, scales) = distribution(caches[0], choosable)
    with torch.no_grad():
        network.log_std.copy_(torch.tensor([-1.0, -2.0]))
    torch.manual_seed(3)
    for _ in range(20):
        actions = found.sample()
        log_probs, entropies = found.log_prob(actions), found.entropy()
        for row in range(3):
            allowed = choosable[row].nonzero()[:, 0]
            of_choice = torch.distributions.Categorical(logits=said.log_pi[row, allowed])
            choice = actions[row, :, 2].argmax()
            assert choosable[row, choice] == 1
            std = network.log_std.exp()
            centre, width, _ = actions[row, choice]
            bounds = torch.stack([centre - width / 2, centre + width / 2])
            noise = torch.distributions.Normal(said.bounds[row, choice], std * scales[row, choice])
            expected = noise.log_prob(bounds).sum() + of_choice.log_prob((allowed == choice).nonzero()[0, 0])
            assert log_probs[row].item() == pytest.approx(expected.item(), abs=1e-3)
            each = [torch.distributions.Normal(0.0, std * scales[row, q]).entropy().sum() for q in allowed]
            expected = of_choice.entropy() + (of_choice.probs * torch.stack(each)).sum()
            assert entropies[row].item() == pytest.approx(expected.item(), abs=1e-4)


def test_draws_follow_the_distribution(caches: Pair) -> None:
    choosable = torch.ones(4, 4)
    found, _, (said, scales) = distribution(caches[0], choosable)
    torch.manual_seed(5)
    actions = torch.stack([found.sample() for _ in range(4000)])  # (4000, 4, 4, 3)
    choice = actions[..., 2].argmax(-1)
    for row in range(4):
        shares = torch.bincount(choice[:, row], minlength=4) / 4000
        assert (shares - said.log_pi[row].exp()).abs().max() < 0.04
        best = int(shares.argmax())
        centre, width, _ = actions[choice[:, row] == best, row, best].unbind(-1)
        noise = torch.stack([centre - width / 2, centre + width / 2], -1) - said.bounds[row, best]
        assert noise.std(0).tolist() == pytest.approx([0.2 * scales[row, best].item()] * 2, rel=0.1)
        assert noise.mean(0).abs().max() < 0.05 * scales[row, best]


def quick(**changes: Any) -> SB3HeadConfig:
    return SB3HeadConfig(**{"batch_size": 16, "lr": 3e-3, "ema": 0.5, "epochs": (2, 2, 8), **changes})


def test_ppo_of_sb3_gains_on_held_out_samples_and_changes_the_head_alone(caches: Pair) -> None:
    head = new_head()
    result = SB3HeadTrainer(head, quick()).fit(*caches, progress=False)
    assert [row["stage"] for row in result.history[1:]] == [1, 1, 2, 2, *[3] * 8]
    assert result.selection > result.history[0]["selection"] + 2
    assert same(head.state_dict(), new_head().state_dict())  # a copy learnt
    changed = {
        name.split(".")[0]
        for name, value in result.head.items()
        if not torch.equal(value, head.state_dict()[name])
    }
    assert changed == {"span_embed", "class_embed"}


def test_the_class_layer_rests_while_there_is_no_choice(caches: Pair) -> None:
    trainer = SB3HeadTrainer(new_head(), quick(epochs=(1, 1, 0)))
    for _ in trainer.train(StateBatches(caches[0])):
        pass
    before = new_head().state_dict()
    for name, value in trainer.head.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("span_embed")), name


def test_resuming_equals_an_uninterrupted_run(
    caches: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SB3HeadTrainer(new_head(), quick(epochs=(1, 1, 2)), seed=4).fit(*caches, progress=False)
    path = tmp_path / "run.pt"

    class Stop(Exception):
        pass

    def stop_after_two(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        SB3HeadTrainer(new_head(), quick(epochs=(1, 1, 2)), seed=4).fit(
            *caches, checkpoint=path, progress=False, watch=stop_after_two
        )
    resumed = SB3HeadTrainer(new_head(), quick(epochs=(1, 1, 2)), seed=4).fit(
        *caches, checkpoint=path, resume=True, progress=False
    )
    assert resumed.history == whole.history
    assert same(resumed.head, whole.head)


@pytest.mark.filterwarnings("ignore:.*no cache given")
@pytest.mark.parametrize(("algorithm", "settings"), [(PPO, {"batch_size": 32}), (A2C, {})])
def test_saved_models_act_as_before(
    algorithm: Any, settings: dict[str, Any], cache: DecoderStateCache, backbone: Backbone, tmp_path: Path
) -> None:
    head = load_checkpoint(backbone.weights).head
    env = make_vec_env(ID, n_envs=4, seed=0, env_kwargs={"source": cache})
    model = algorithm(
        HeadActorCriticPolicy,
        env,
        n_steps=8,
        gamma=1.0,
        policy_kwargs={"network": HeadPolicy(head, 0.1)},
        device="cpu",
        **settings,
    ).learn(64)
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", device="cpu")
    observations = env.reset()
    np.testing.assert_array_equal(
        *(one.predict(observations, deterministic=True)[0] for one in (model, again))
    )
    assert not same(head.state_dict(), load_checkpoint(backbone.weights).head.state_dict())


def wrong() -> Iterator[tuple[Any, str]]:
    def step(action: Any) -> Any:
        def act(env: VMRHeadEnv) -> None:
            env.reset(seed=0)
            env.step(action)

        return act

    yield lambda env: env.step(np.zeros((5, 3))), "reset first"
    yield step(np.zeros((5, 2))), r"expected finite numbers in Box\(0\.0, 1\.0, \(5, 3\)"
    yield step(np.full((5, 3), np.nan)), "expected finite numbers"
    yield lambda env: env.reset(options={"sample": 40}), r"options\['sample'\] is 40, expected .* 0 to 39"
    yield lambda env: env.reset(options={"start": 5}), r"options\['start'\] is 5, expected .* 0 to 4"
    yield lambda env: env.reset(options={"qid": "none"}), "is none of the 40 query ids"
    yield lambda env: env.reset(options={"row": 1}), r"options has \['row'\]"
    yield lambda env: env.set_stage(4), "stage must be one of"
    yield lambda env: VMRHeadEnv(source=env.cache, reward="speed"), "reward is 'speed', expected one of"


@pytest.mark.parametrize(("act", "message"), [*wrong()])
def test_what_is_asked_wrongly_is_told(act: Any, message: str, cache: DecoderStateCache) -> None:
    with pytest.raises((ValueError, DataError, gymnasium.error.ResetNeeded), match=message):
        act(VMRHeadEnv(source=cache))


@pytest.mark.filterwarnings("ignore:no cache given")
def test_a_cache_without_decoder_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMR_ENV_DATA", raising=False)
    with pytest.raises(DataError, match="source: is missing; simulated data of 'tacos' have no"):
        gymnasium.make("VMR-TACoS-Head-v0")
    source = simulated_source("tacos", "train")
    with pytest.raises(DataError, match="no decoder states and references, expected a cache written by"):
        gymnasium.make("VMR-TACoS-Head-v0", source=source)


def test_other_environments_are_no_place_for_a_head(cache: DecoderStateCache) -> None:
    env = gymnasium.make("VMR-Charades-v0", source=cache)
    with pytest.raises(
        ValueError, match=r"observations lack 'choosable', expected those of a VMR-\*-Head-v0"
    ):
        PPO(HeadActorCriticPolicy, env, policy_kwargs={"network": HeadPolicy(new_head(), 0.1)})
    with pytest.raises(ValueError, match="target_length is 'clips', expected 'duration'"):
        quick(target_length="clips")
