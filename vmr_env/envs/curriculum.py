"""TPRL's three stages and its published schedules, as data.

`STAGES` is the one table of the curriculum. The environments read from it which potential rewards a step,
where an episode starts and which actions are free; the TPRL trainer (`vmr_env.agents.tprl.trainer`) reads
what is trained and
with which loss coefficients. `SCHEDULES` names the published schedules; `coefficients` evaluates one of them.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias


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
    """One stage of the curriculum, for the environments and for the TPRL trainer.

    L_top1, the refinement of the best-scored proposal, has the same coefficient in all stages.
    """

    number: int
    """1, 2 or 3, as in environment ids and `set_stage`."""
    name: str
    """What the stage does, in one word or two."""
    trains: tuple[str, ...]
    """Modules of the detection head that a loss of this stage reaches."""
    reward: str
    """Name of the potential whose gain rewards a step of the environment."""
    start: str
    """Where an episode starts: "top" is the backbone's best proposal, "sampled" a random one of the best
    `start_k`."""
    start_k: int
    """Number of best proposals that an episode may start from."""
    actions: frozenset[str]
    """Free action groups among "move", "switch" and "stop"; the others are masked."""
    span: Ramp
    """Multiplier of the schedule's coefficient for L_span, the reward-weighted span regression."""
    score: Ramp
    """Multiplier of the schedule's coefficient for L_score, the policy gradient over proposals."""
    decays: bool
    """Whether the schedule's decay applies in this stage."""


STAGES: dict[int, Stage] = {
    stage.number: stage
    for stage in (
        # Analogue of L1 + GIoU on the best-scored proposal; GIoU also guides spans that miss the moment.
        Stage(
            number=1,
            name="top-1 refinement",
            trains=("span_embed",),
            reward="giou",
            start="top",
            start_k=1,
            actions=frozenset({"move", "stop"}),
            span=OFF,
            score=OFF,
            decays=False,
        ),
        # Refinement learnt from any good proposal, so that choosing among them later does not cost precision.
        Stage(
            number=2,
            name="reward-weighted refinement",
            trains=("span_embed",),
            reward="tiou",
            start="sampled",
            start_k=3,
            actions=frozenset({"move", "stop"}),
            span=Ramp(epochs=None),
            score=OFF,
            decays=False,
        ),
        # Everything free: the choice among proposals joins the moves.
        Stage(
            number=3,
            name="policy gradient",
            trains=("span_embed", "class_embed"),
            reward="tiou",
            start="top",
            start_k=1,
            actions=frozenset({"move", "switch", "stop"}),
            span=FULL,
            score=Ramp(epochs=10),
            decays=True,
        ),
    )
}


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


def three_stages(
    rl_coef: float, epochs: tuple[int, int, int], *, cosine: bool = False, span_only: bool = False
) -> Schedule:
    """Build a schedule through the three stages of `STAGES`.

    Args:
        rl_coef: Full coefficient of L_score and L_span.
        epochs: Length of each stage; 0 leaves a stage out.
        cosine: Cosine decay to a fifth over the stages that decay (stage 3).
        span_only: Leave L_score out of every stage.

    Raises:
        ValueError: A length is negative or all are 0.
    """
    if min(epochs) < 0 or sum(epochs) == 0:
        raise ValueError(f"epochs must be three lengths >= 0, not all 0; got {epochs}")
    return Schedule(
        rl_coef,
        tuple(
            Phase(
                length,
                stage.number,
                span=stage.span,
                score=OFF if span_only else stage.score,
                cosine=cosine and stage.decays,
            )
            for stage, length in zip(STAGES.values(), epochs, strict=True)
        ),
    )


SCHEDULES: dict[str, Schedule] = {
    "charades": three_stages(0.03, (8, 12, 60), cosine=True),
    "charades_v15c": three_stages(0.03, (20, 20, 40)),
    "charades_span_only": three_stages(0.03, (8, 12, 60), cosine=True, span_only=True),
    "qvhighlights": three_stages(0.05, (20, 20, 20)),
    "tacos": three_stages(0.02, (10, 10, 40)),
    "linear": Schedule(0.1, (Phase(20, None, span=Ramp(epochs=10), score=Ramp(epochs=10)),)),
    "constant": Schedule(0.1, (Phase(5, None, span=FULL, score=FULL),)),
}
"""Published schedules: one per training script, and the variants that the published options allow."""


def get_stage(number: int) -> Stage:
    """Stage `number` of the curriculum.

    Raises:
        ValueError: There is no such stage.
    """
    if isinstance(number, bool) or number not in tuple(STAGES):  # compared, not hashed: it may be of any type
        raise ValueError(f"stage must be one of {sorted(STAGES)}, got {number!r}")
    return STAGES[number]


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
        ValueError: The numbers are not one fewer than the stages, or fall.
    """

    after: tuple[int, ...] = (20_000, 60_000)
    """Environment steps, of all episodes together, after which stages 2 and 3 begin."""

    def __post_init__(self) -> None:
        if len(self.after) != len(STAGES) - 1 or sorted(self.after) != list(self.after) or self.after[0] < 0:
            raise ValueError(f"after must be {len(STAGES) - 1} rising numbers of steps, got {self.after}")


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

    Attributes:
        stage: Number of the stage.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
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
            ValueError: the state names no stage.
            KeyError: the state lacks an entry.
        """
        self.stage = get_stage(state["stage"]).number
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
        if self._failures == rule.patience and self.stage < len(STAGES):
            self.stage += 1
            self._best, self._failures = -math.inf, 0  # another reward: means of stages do not compare
