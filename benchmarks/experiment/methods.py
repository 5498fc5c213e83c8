"""The methods of an experiment: each turns training samples into answers for test samples.

`EnvironmentMethod` trains an agent in the environments; it answers with one refined moment for each sample.
`HeadMethod` trains the backbone's own detection head on its cached decoder states; it answers with all
proposals, ranked anew. The rest of the backbone is frozen: hashes of its tensors before and after tell.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmr_env.agents.ensemble.cross_fitting import (
    Configured,
    CrossFit,
    MakeAgent,
    Progress,
    Selection,
    TrainedMember,
    training_environment,
)
from vmr_env.agents.ensemble.files import save_ensemble
from vmr_env.agents.evaluation import USES, Refined, Trajectories, submission, trace
from vmr_env.agents.sb3.head_config import SB3HeadConfig
from vmr_env.agents.tensors import write_tensors
from vmr_env.agents.tprl.config import TprlConfig
from vmr_env.agents.tprl.data import StateBatches
from vmr_env.agents.tprl.head import Head, frozen, learning
from vmr_env.agents.tprl.head_config import HeadConfig
from vmr_env.agents.tprl.head_policy import HeadPolicyConfig, HeadPolicyTrainer
from vmr_env.agents.tprl.head_training import (
    Figures,
    HeadResult,
    HeadTrainer,
    TrainedHead,
    join_heads,
    train_head,
)
from vmr_env.agents.tprl.trainer import TprlTrainer
from vmr_env.agents.tprl.validation import propose
from vmr_env.backbones.base import TrainableDetector, open_detector
from vmr_env.backbones.girl_detr.model import GirlDetr
from vmr_env.backbones.girl_detr.weights import tensor_sha256
from vmr_env.caches.reader import DecoderStateCache
from vmr_env.data.predictions import Prediction
from vmr_env.envs.actions import FREE
from vmr_env.envs.curriculum import Rule
from vmr_env.errors import DataError, Problem

Watch = Callable[[Progress], None]

_DECIMALS = 4  # of seconds and scores in submissions


@dataclass(frozen=True)
class Fold:
    """Samples that one training learns from, and samples that it is evaluated on."""

    train: DecoderStateCache
    train_samples: NDArray[np.intp]
    test: DecoderStateCache
    test_samples: NDArray[np.intp]
    select: DecoderStateCache | None = None
    """Samples by which methods that train the head choose their epoch; None for parts of the training
    samples."""


@dataclass(frozen=True)
class Settings:
    """How methods are trained and judged."""

    members: int
    """Members of an ensemble; parts into which the training videos of a head are cut."""
    evaluations: int
    """How often each member of an ensemble is judged on the samples held out for it."""
    proposals: int
    """Proposals of a sample that take part in the environments."""
    rounds: int | None
    """Rounds of learning in the environments; None for the agent's own number."""
    free: tuple[str, ...] = FREE
    """Groups of actions that may be free in the environments."""
    curriculum: Rule | None = None
    """When an agent in the environments goes on to the next stage; None to learn in the last one."""
    stages: str = "tprl"
    """The environments' curriculum."""
    submission_times: bool = False
    """Whether all answers, the detector's too, are rounded as in published submissions before they are
    scored."""
    components: tuple[str, ...] = ()
    """Components of observations that agents in the environments see; none for the default ones."""
    actions: str | None = None
    """Action mode of agents in the environments; None for the agent's own."""
    device: str = "cpu"
    """Torch device on which networks learn and answer."""

    @property
    def environment(self) -> dict[str, Any]:
        """Arguments of the environments."""
        shown: dict[str, Any] = {"components": list(self.components)} if self.components else {}
        if self.actions is not None:
            shown["actions"] = self.actions
        return {"proposals": self.proposals, "free": list(self.free), "curriculum": self.stages, **shown}


class Ranked(NamedTuple):
    """All proposals of K samples, best first."""

    samples: NDArray[np.intp]
    """(K,), rows of the cache."""
    windows: NDArray[np.float64]
    """(K, Q, 3): start and end in seconds, score."""


Answers: TypeAlias = Refined | Ranked


@dataclass(frozen=True)
class MethodResult:
    """Result of a method."""

    answers: Answers
    """To the test samples of the fold."""
    selection: Selection
    """Report on the training; for a trained head, rounds are epochs and steps the samples learnt from."""
    frozen: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of every frozen tensor of the backbone "before" and "after"; empty where only its cached states
    were there."""
    trajectories: Trajectories | None = None
    """Of the episodes that the answers come from; None where there were none, as for heads."""


class Method(ABC):
    """A way to learn; instances pickle, so that they can run in processes of their own."""

    def describe(self) -> dict[str, Any]:
        """Its settings, for reports; nothing for what has none of its own."""
        return {}

    def check(self, name: str, fold: Fold, settings: Settings) -> None:  # noqa: B027 - most have nothing to check
        """Raise DataError, which calls the method by its name, where it does not go with these settings."""

    def members(self, fold: Fold, settings: Settings) -> int:
        """How many members are trained, each by itself: side by side where there are processes for them."""
        return 1

    @abstractmethod
    def train(self, fold: Fold, seed: int, settings: Settings, member: int, watch: Watch) -> Any:
        """Train one member; what it learnt pickles.

        Args:
            fold: The data.
            seed: Fixes everything.
            settings: See `Settings`.
            member: From 0.
            watch: Called after every round.
        """

    @abstractmethod
    def answer(
        self,
        learnt: Sequence[Any],
        fold: Fold,
        seed: int,
        settings: Settings,
        keep: Path,
        about: Mapping[str, Any],
    ) -> MethodResult:
        """Put together what all members learnt, keep it, and answer.

        Args:
            learnt: What `train` gave for each member.
            fold: As there; so are `seed` and `settings`.
            keep: Path of what is kept, without its suffix.
            about: What to note there.
        """


@dataclass(frozen=True)
class EnvironmentMethod(Method):
    """An ensemble of agents in the environments, kept as `.safetensors` (`vmr_env.agents.ensemble.files`)."""

    make: MakeAgent
    """Makes an agent for an environment and a seed."""

    def describe(self) -> dict[str, Any]:
        """Its settings, where they are not the agent's own."""
        return asdict(self.make.config) if isinstance(self.make, Configured) else {}

    def check(self, name: str, fold: Fold, settings: Settings) -> None:
        """Make an agent and drop it, so that incompatible settings are refused before training.

        Raises:
            DataError: the agent, its settings and the environment's do not go together.
        """
        try:
            options = self._options(settings)
            env = training_environment(
                self.make, fold.train, fold.train_samples, options, settings.curriculum
            )
            self.make(env, 0).to(settings.device)
        except ValueError as error:
            raise DataError(Problem(name, None, None, str(error))) from error

    def _options(self, settings: Settings) -> dict[str, Any]:
        """Arguments of the agent's environments."""
        return {**settings.environment, **getattr(self.make, "env_options", {})}

    def members(self, fold: Fold, settings: Settings) -> int:
        """See `Method`."""
        return settings.members

    def train(self, fold: Fold, seed: int, settings: Settings, member: int, watch: Watch) -> TrainedMember:
        """See `Method`."""
        return self._fit(fold, seed, settings).train(member, watch)

    def answer(
        self,
        learnt: Sequence[TrainedMember],
        fold: Fold,
        seed: int,
        settings: Settings,
        keep: Path,
        about: Mapping[str, Any],
    ) -> MethodResult:
        """See `Method`."""
        ensemble, selection = self._fit(fold, seed, settings).join(learnt)
        refined, trajectories = trace(ensemble.act, fold.test, fold.test_samples, ensemble.options)
        kept = keep.with_name(f"{keep.name}.safetensors")
        save_ensemble(kept, ensemble, fold.train, {**about, "chosen": selection.chosen})
        return MethodResult(refined, selection, trajectories=trajectories)

    def _fit(self, fold: Fold, seed: int, settings: Settings) -> CrossFit:
        """The training of all members."""
        return CrossFit(
            self.make,
            fold.train,
            fold.train_samples,
            members=settings.members,
            evaluations=settings.evaluations,
            seed=seed,
            options=self._options(settings),
            rounds=settings.rounds,
            curriculum=settings.curriculum,
            device=settings.device,
        )


KIND = "backbone"
"""Entry in the metadata of kept heads: the kind of detector that they are of."""


@dataclass(frozen=True)
class HeadMethod(Method):
    """The detection head, trained on cached decoder states and kept as `.safetensors`.

    `vmr_env.benchmarks.cli.graft` puts a kept head back into its backbone.
    """

    config: HeadConfig
    """Says which trainer: of TPRL, of the head's policy, or of Stable-Baselines3."""
    weights: Path
    """Folder of the backbone's weights."""

    def describe(self) -> dict[str, Any]:
        """Settings of the training."""
        return asdict(self.config)

    def check(self, name: str, fold: Fold, settings: Settings) -> None:
        """Refuse another device than the processor where SB3 trains the head.

        Raises:
            DataError: it is another.
        """
        if isinstance(self.config, SB3HeadConfig) and settings.device != "cpu":
            message = (
                f"trains by Stable-Baselines3 on the processor, expected cpu instead of {settings.device}"
            )
            raise DataError(Problem("--device", None, name, message))

    def members(self, fold: Fold, settings: Settings) -> int:
        """See `Method`: one where samples of their own tell the best epoch."""
        return settings.members if fold.select is None else 1

    def train(self, fold: Fold, seed: int, settings: Settings, member: int, watch: Watch) -> "TrainedPart":
        """See `Method`."""
        detector = self._detector(fold, settings)
        members, samples = self.members(fold, settings), len(fold.train_samples)
        epochs = self.trainer(detector.head, seed).epochs

        def told(row: Figures) -> None:
            losses = {name: value for name, value in row.items() if name.startswith("losses/")}
            done = int(row["epoch"]) + 1
            gain = row["gain"] / 100 if "gain" in row else None
            watch(Progress(member, done, epochs, done * samples, losses, gain, members))

        trained: TrainedHead | HeadResult
        if fold.select is None:
            trained = train_head(
                lambda each: self.trainer(detector.head, each),
                fold.train,
                fold.train_samples,
                member,
                members=members,
                seed=seed,
                watch=told,
            )
            samples -= len(trained.held_out)
        else:
            trained = self.trainer(detector.head, seed).fit(
                fold.train, fold.select, train_rows=fold.train_samples, progress=False, watch=told
            )
        return TrainedPart(trained, epochs * samples, frozen_sha256(detector))

    def answer(
        self,
        learnt: Sequence["TrainedPart"],
        fold: Fold,
        seed: int,
        settings: Settings,
        keep: Path,
        about: Mapping[str, Any],
    ) -> MethodResult:
        """See `Method`."""
        detector = self._detector(fold, settings)
        before = frozen_sha256(detector)
        trained: list[Any] = [part.trained for part in learnt]
        result: HeadResult = join_heads(fold.train, trained) if fold.select is None else trained[0]
        detector.head.load_state_dict(result.head)
        kind = fold.train.manifest["backbone"]["kind"]
        write_tensors(keep.with_name(f"{keep.name}.safetensors"), result.head, {KIND: kind})
        answers = ranked(fold.test, fold.test_samples, detector.head)
        after = frozen_sha256(detector)
        for part in learnt:
            after |= {name: digest for name, digest in part.frozen.items() if digest != before[name]}
        steps = sum(part.steps for part in learnt)
        return MethodResult(answers, selection_of(result, steps), {"before": before, "after": after})

    def _detector(self, fold: Fold, settings: Settings) -> TrainableDetector:
        """The backbone, its head on the device of the settings."""
        detector = open_detector(fold.train.manifest["backbone"]["kind"], self.weights)
        detector.head.to(settings.device)
        return detector

    def trainer(self, head: Head, seed: int) -> HeadTrainer[Any, Any]:
        """A trainer of a detector's head."""
        if isinstance(self.config, TprlConfig):
            return TprlTrainer(head, self.config, seed)
        if isinstance(self.config, HeadPolicyConfig):
            return HeadPolicyTrainer(head, self.config, seed)
        if isinstance(self.config, SB3HeadConfig):
            from vmr_env.agents.sb3.head_trainer import SB3HeadTrainer  # loads Stable-Baselines3

            return SB3HeadTrainer(head, self.config, seed)
        raise TypeError(f"config is {type(self.config).__name__}, expected that of a trainer of heads")


class TrainedPart(NamedTuple):
    """What one member of a `HeadMethod` learnt; pickles."""

    trained: TrainedHead | HeadResult
    """The latter where there is one member."""
    steps: int
    """Samples learnt from, each as often as it was."""
    frozen: dict[str, str]
    """SHA-256 of every frozen tensor of the backbone, after the training."""


def selection_of(result: HeadResult, steps: int) -> Selection:
    """Report on the training of a head, in the terms of ensembles."""
    start, *rows = result.history
    return Selection(
        tuple(int(row["epoch"]) + 1 for row in rows),
        tuple((row["quality"] - start["quality"]) / 100 for row in rows),
        result.epoch + 1,
        steps,
        tuple(tuple(row[f"uses/{name}"] for name in USES) for row in rows),
    )


def ranked(cache: DecoderStateCache, samples: NDArray[np.intp], head: Head) -> Ranked:
    """What a head proposes for samples of a cache, cut to the video, best first."""
    spans, scores = propose(head, StateBatches(cache, rows=samples, device=learning(head)[0].device))
    return ranking(cache, samples, spans, scores)


def ranking(
    cache: DecoderStateCache,
    samples: NDArray[np.intp],
    spans: NDArray[np.float32],
    scores: NDArray[np.float32],
) -> Ranked:
    """Spans ``(K, Q, 2)`` in units of the duration and scores ``(K, Q)`` as answers."""
    seconds = (
        np.clip(spans.astype(np.float64), 0, 1) * cache.durations[samples].astype(np.float64)[:, None, None]
    )
    order = np.argsort(-scores, axis=1, kind="stable")[..., None]
    windows = np.concatenate([seconds, scores[..., None]], axis=-1)
    return Ranked(samples, np.take_along_axis(windows, order, axis=1))


def predictions(cache: DecoderStateCache, answers: Answers) -> list[Prediction]:
    """Answers as a submission."""
    if isinstance(answers, Refined):
        return submission(cache, answers)
    rows = []
    for i, windows in zip(answers.samples.tolist(), answers.windows, strict=True):
        sample = cache.sample(i)
        saliency = None if cache.saliency is None else np.array(cache.saliency[i], np.float32)
        rows.append(Prediction(sample.qid, sample.vid, sample.query, np.round(windows, _DECIMALS), saliency))
    return rows


def frozen_sha256(detector: TrainableDetector | GirlDetr) -> dict[str, str]:
    """SHA-256 of every tensor that training the head leaves alone, by name."""
    return tensor_sha256(frozen(detector.state_dict(), detector.head))


def check_weights(weights: Path, cache: DecoderStateCache) -> None:
    """Refuse weights that are not those which the cache was made with.

    Raises:
        DataError: The folder has no weights, or they are others; the cache has no decoder states.
    """
    StateBatches(cache, rows=np.arange(1))
    backbone = cache.manifest["backbone"]
    found, expected = open_detector(backbone["kind"], weights).sha256, backbone["sha256"]
    if found != expected:
        message = f"is {found}, expected {expected}, of the backbone that made {cache.path}"
        raise DataError(Problem(str(weights), None, "sha256", message))
