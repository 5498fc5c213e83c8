"""One run of a method, in this process."""

from pathlib import Path

from vmr_env.benchmarks.experiment.methods import Fold, Method, MethodResult, Settings


def run_alone(method: Method, fold: Fold, settings: Settings, keep: Path) -> MethodResult:
    """Train one member after the other, and answer."""
    members = range(method.members(fold, settings))
    learnt = [method.train(fold, 0, settings, member, lambda progress: None) for member in members]
    return method.answer(learnt, fold, 0, settings, keep, {})
