"""Curricula as data: TPRL's three stages, its published schedules, and curricula of your own.

A `Curriculum` is a table of stages. The environments read from it which potential rewards a step, where an
episode starts and which actions are free; trainers of a detector's head (`vmr_env.agents.tprl`) also read the
loss coefficients. `STAGES` is TPRL's table; `register_curriculum` adds one of your own, of any number of
stages. `SCHEDULES` names TPRL's published schedules; `coefficients` evaluates one of them.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from vmr_env.envs.lookup import Registry
from vmr_env.errors import check_count

GROUPS = ("move", "switch", "stop")
"""Groups of actions; stopping is free in every stage."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """Multiplier of a loss coefficient within one phase: a linear rise, then level."""

    height: float = 1.0
    """Level at the end of the rise; 0 switches the loss off."""
    epochs: int | None = 0
    """Epochs until `height` is reached: 0 for at once, None for the last epoch of the phase."""

    def at(self, epoch: int, length: int) -> float:
        """Multiplier at `epoch` (from 0) of a phase of `length` epochs."""
        rise = length if self.epochs is None else self.epochs
        return self.height * min(1.0, (epoch + 1) / rise) if rise else self.height


OFF = Ramp(0.0)
FULL = Ramp()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a curriculum, for the environments and for the trainers of a detector's head.

    Raises:
        ValueError: a value is not as described.
    """

    name: str
    """What the stage does, in a few words."""
    reward: str = "tiou"
    """Potential whose gain rewards a step of the environment, as the environments' argument `reward`."""
    start_k: int = 1
    """Number of best proposals; an episode starts at a random one of them."""
    actions: Collection[str] = GROUPS
    """Free groups of actions, of `GROUPS`; the others are masked."""
    span: Ramp = FULL
    """Multiplier of the schedule's coefficient for L_span, the reward-weighted span regression."""
    score: Ramp = FULL
    """Multiplier of the schedule's coefficient for L_score, the policy gradient over proposals."""
    decays: bool = False
    """Whether the schedule's decay applies in this stage."""

    def __post_init__(self) -> None:
        check_count("start_k", self.start_k)
        if isinstance(self.actions, str) or (unknown := set(self.actions) - set(GROUPS)):
            wrong = self.actions if isinstance(self.actions, str) else min(unknown, key=str)
            raise ValueError(
                f"actions of stage {self.name!r} have {wrong!r}, expected some of {', '.join(GROUPS)}"
            )

    @property
    def free(self) -> frozenset[str]:
        """Free groups of actions, stopping always among them."""
        return frozenset({*self.actions, "stop"})


@dataclass(frozen=True, slots=True)
class Curriculum:
    """A table of stages, numbered from 1.

    `len(curriculum)` is their number, `curriculum[2]` the second.

    Raises:
        ValueError: there is no stage, or two of one name.
    """

    stages: tuple[Stage, ...]
    """The stages, in order."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"stages are named {names}, expected at least one, and a name for each")

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, number: int) -> Stage:
        """Stage `number`.

        Raises:
            ValueError: there is no such stage.
        """
        if isinstance(number, bool) or number not in self.numbers:  # compared: it may be of any type
            raise ValueError(f"stage must be one of {list(self.numbers)}, got {number!r}")
        return self.stages[number - 1]

    @property
    def numbers(self) -> range:
        """Numbers of the stages, as environment ids and `set_stage` have them."""
        return range(1, len(self.stages) + 1)


STAGES = Curriculum(
    (
        # Analogue of L1 + GIoU on the best-scored proposal; GIoU also guides spans that miss the moment.
        Stage("top-1 refinement", reward="giou", actions=("move",), span=OFF, score=OFF),
        # Refinement learnt from any good proposal, so that choosing among them later does not cost precision.
        Stage("reward-weighted refinement", start_k=3, actions=("move",), span=Ramp(epochs=None), score=OFF),
        # Everything free: the choice among proposals joins the moves.
        Stage("policy gradient", score=Ramp(epochs=10), decays=True),
    )
)
"""TPRL's three stages. L_top1, the refinement of the best-scored proposal, has one coefficient in all."""

CURRICULA: Registry[Curriculum] = Registry("curriculum", {"tprl": STAGES}, Curriculum)
"""Tables by the names that the environments' argument `curriculum` takes."""


def register_curriculum(name: str, *stages: Stage) -> None:
    """Add a table of stages that the environments' argument `curriculum` can name.

    Worker processes know it too where the call stands in a plugin (`vmr_env.plugins`). Without one,
    `curriculum` takes `"module:name"` of a `Curriculum`.

    Raises:
        ValueError: another curriculum has that name, or the stages are not as `Curriculum` wants them.
    """
    CURRICULA.add(name, Curriculum(stages))


@dataclass(frozen=True, slots=True)
class Phase:
    """A run of epochs under one rule for the loss coefficients."""

    epochs: int
    """Length of the phase; 0 leaves it out."""
    stage: int | None
    """Stage of the curriculum; None for schedules without stages."""
    span: Ramp
    """Multiplier for L_span."""
    score: Ramp
    """Multiplier for L_score."""
    cosine: bool = False
    """Multiply both by 0.2 + 0.4 (1 + cos(pi t)), t from 0 to 1 over the phase: a decay from 1 to 0.2."""

    def multipliers(self, epoch: int) -> tuple[float, float]:
        """Multipliers (score, span) at `epoch`, counted from 0 within the phase."""
        decay = 0.2 + 0.4 * (1 + math.cos(math.pi * epoch / self.epochs)) if self.cosine else 1.0
        return self.score.at(epoch, self.epochs) * decay, self.span.at(epoch, self.epochs) * decay


@dataclass(frozen=True, slots=True)
class Schedule:
    """Phases in order, and the coefficient that their multipliers scale.

    Raises:
        ValueError: the coefficient is negative or not finite.
    """

    rl_coef: float
    """Full coefficient of L_score and L_span (the published option `rl_coef`)."""
    phases: tuple[Phase, ...]
    """The phases, in order."""

    def __post_init__(self) -> None:
        if not 0 <= self.rl_coef < math.inf:
            raise ValueError(f"rl_coef is {self.rl_coef}, expected a number of at least 0")

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole schedule."""
        return sum(phase.epochs for phase in self.phases)


class Coefficients(NamedTuple):
    """Loss coefficients of one epoch."""

    stage: int | None
    """Stage of the curriculum; None for schedules without stages."""
    score: float
    """Coefficient of L_score."""
    span: float
    """Coefficient of L_span."""


def through_stages(
    rl_coef: float,
    epochs: Sequence[int],
    *,
    cosine: bool = False,
    span_only: bool = False,
    curriculum: Curriculum = STAGES,
) -> Schedule:
    """Build a schedule through the stages of a curriculum.

    Args:
        rl_coef: Full coefficient of L_score and L_span.
        epochs: Length of each stage; 0 leaves a stage out.
        cosine: Cosine decay to a fifth over the stages that decay (TPRL's third).
        span_only: Leave L_score out of every stage.
        curriculum: The stages.

    Raises:
        ValueError: There are not as many lengths as stages, one is negative, or all are 0.
    """
    if len(epochs) != len(curriculum) or min(epochs) < 0 or sum(epochs) == 0:
        raise ValueError(f"epochs must be {len(curriculum)} lengths >= 0, not all 0; got {tuple(epochs)}")
    return Schedule(
        rl_coef,
        tuple(
            Phase(
                length,
                number,
                span=stage.span,
                score=OFF if span_only else stage.score,
                cosine=cosine and stage.decays,
            )
            for number, stage, length in zip(curriculum.numbers, curriculum.stages, epochs, strict=True)
        ),
    )


SCHEDULES: dict[str, Schedule] = {
    "charades": through_stages(0.03, (8, 12, 60), cosine=True),
    "charades_v15c": through_stages(0.03, (20, 20, 40)),
    "charades_span_only": through_stages(0.03, (8, 12, 60), cosine=True, span_only=True),
    "qvhighlights": through_stages(0.05, (20, 20, 20)),
    "tacos": through_stages(0.02, (10, 10, 40)),
    "linear": Schedule(0.1, (Phase(20, None, span=Ramp(epochs=10), score=Ramp(epochs=10)),)),
    "constant": Schedule(0.1, (Phase(5, None, span=FULL, score=FULL),)),
}
"""Published schedules: one per training script, and the variants that the published options allow."""


def get_schedule(name: str) -> Schedule:
    """Published schedule `name`.

    Raises:
        ValueError: There is no such schedule; the message suggests the nearest name.
    """
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown schedule {name!r}, expected one of {sorted(SCHEDULES)}{hint}")
    return SCHEDULES[name]


def coefficients(schedule: Schedule | str, epoch: int) -> Coefficients:
    """Stage and loss coefficients at `epoch` (counted from 0) of a schedule or of a published one by name.

    Raises:
        ValueError: The name is unknown or the schedule has no such epoch.
    """
    if isinstance(schedule, str):
        schedule = get_schedule(schedule)
    left = epoch
    for phase in schedule.phases:
        if 0 <= left < phase.epochs:
            score, span = phase.multipliers(left)
            return Coefficients(phase.stage, schedule.rl_coef * score, schedule.rl_coef * span)
        left -= phase.epochs
    raise ValueError(f"epoch must be from 0 to {schedule.epochs - 1}, got {epoch}")


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """Advance to the next stage after given numbers of steps.

    Raises:
        ValueError: The numbers fall, or one is negative.
    """

    after: tuple[int, ...] = (20_000, 60_000)
    """Environment steps, of all episodes together, after which stages 2, 3 and so on begin."""

    def __post_init__(self) -> None:
        if sorted(self.after) != list(self.after) or min(self.after, default=0) < 0:
            raise ValueError(f"after must be rising numbers of steps, got {self.after}")


@dataclass(frozen=True, slots=True)
class Plateau:
    """Advance to the next stage when the mean return no longer rises.

    Raises:
        ValueError: `window` or `patience` is below 1, or `least_gain` not finite.
    """

    window: int = 1000
    """Episodes over which returns are averaged."""
    patience: int = 3
    """Windows in a row without a new best mean, after which the next stage begins."""
    least_gain: float = 0.0
    """By how much a mean must exceed the best one so far to be a new best."""

    def __post_init__(self) -> None:
        if min(self.window, self.patience) < 1:
            raise ValueError(f"window and patience must be at least 1, got {self.window} and {self.patience}")
        if not math.isfinite(self.least_gain):
            raise ValueError(f"least_gain is {self.least_gain}, expected a finite number")


Rule: TypeAlias = StepSchedule | Plateau
"""When the next stage begins."""


class Progression:
    """The stage that a training stands in.

    Args:
        rule: When the next stage begins.
        stages: How many stages there are.

    Attributes:
        stage: Number of the stage.

    Raises:
        ValueError: The rule is for another number of stages.
    """

    def __init__(self, rule: Rule, stages: int = len(STAGES)) -> None:
        if isinstance(rule, StepSchedule) and len(rule.after) != stages - 1:
            raise ValueError(
                f"after must be {stages - 1} rising numbers of steps for {stages} stages, got {rule.after}"
            )
        self._rule, self._stages = rule, stages
        self._steps = 0
        self._returns: list[float] = []
        self._best, self._failures = -math.inf, 0
        self.stage = 1

    def observe(self, steps: int, returns: Iterable[float] = ()) -> bool:
        """Take note of further steps, and of the returns of episodes that ended with them.

        Returns:
            Whether a new stage has begun.

        Raises:
            ValueError: a return is not finite; nothing is taken note of then.
        """
        before = self.stage
        returns = [float(value) for value in returns]
        if wrong := [value for value in returns if not math.isfinite(value)]:
            raise ValueError(f"a return is {wrong[0]}, expected a finite number")
        self._steps += steps
        if isinstance(self._rule, StepSchedule):
            self.stage = 1 + sum(self._steps >= after for after in self._rule.after)
        else:
            for value in returns:
                self._ended(self._rule, value)
        return self.stage != before

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in JSON values: for `load_state_dict` of another with the same rule."""
        return {
            "stage": self.stage,
            "steps": self._steps,
            "returns": list(self._returns),
            "best": None if self._best == -math.inf else self._best,
            "failures": self._failures,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was asked.

        Raises:
            ValueError: there is no such stage.
            KeyError: the state lacks an entry.
        """
        if not 1 <= state["stage"] <= self._stages:
            raise ValueError(f"stage is {state['stage']}, expected one of the {self._stages} there are")
        self.stage = state["stage"]
        self._steps, self._returns = state["steps"], list(state["returns"])
        self._best = -math.inf if state["best"] is None else state["best"]
        self._failures = state["failures"]

    def _ended(self, rule: Plateau, value: float) -> None:
        self._returns.append(value)
        if len(self._returns) < rule.window:
            return
        mean = math.fsum(self._returns) / rule.window
        self._returns.clear()
        if mean > self._best + rule.least_gain:
            self._best, self._failures = mean, 0
            return
        self._failures += 1
        if self._failures == rule.patience and self.stage < self._stages:
            self.stage += 1
            self._best, self._failures = -math.inf, 0  # another reward: means of stages do not compare
