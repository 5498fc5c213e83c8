"""`vmr-env demo`: one episode before and after an agent that ships with the package.

The agent is an ensemble of `expected_gain`, trained on the embedded backbone's training videos by

    vmr-env tprl --agents expected_gain --out runs/demo
    cp runs/demo/runs/expected_gain-seed0-fold0.safetensors vmr_env/assets/charades-simulated/

The file names the components that it sees, all but decoder states; a change of those or of their network asks
for a new one.
"""

from typing import TYPE_CHECKING

import click

from vmr_env.benchmarks.cli.common import problems_exit_with_1

if TYPE_CHECKING:
    from vmr_env.agents.ensemble.cross_fitting import CrossFittedEnsemble
    from vmr_env.caches.reader import DecoderStateCache

AGENT_FILE = "expected_gain-seed0-fold0.safetensors"
GOOD = 0.7
"""tIoU over which a moment counts as found."""


@click.command()
@click.option("--qid", help="Query to show; default: the first one that the agent brings over tIoU 0.7.")
@problems_exit_with_1
def demo(qid: str | None) -> None:
    """Show one episode before and after an agent that ships with the package: a few seconds.

    \b
      vmr-env demo
      vmr-env demo --qid 12
    """
    import torch

    from vmr_env.agents.ensemble.files import load_ensemble
    from vmr_env.caches.reader import DecoderStateCache
    from vmr_env.envs.sources import simulated_source

    torch.set_num_threads(1)
    cache = DecoderStateCache.open(simulated_source("charades", "test"))
    ensemble = load_ensemble(cache.path.with_name(AGENT_FILE), cache)
    for part in show(ensemble, cache, qid):
        click.echo(part)


def show(ensemble: "CrossFittedEnsemble", cache: "DecoderStateCache", qid: str | None) -> list[str]:
    """What the command prints.

    Args:
        ensemble: the agent.
        cache: test samples.
        qid: query to show; None for the first one that the agent brings over `GOOD`.

    Raises:
        DataError: there is no such query.
    """
    import numpy as np

    from vmr_env.agents.evaluation import refine
    from vmr_env.envs.env import VMREnv
    from vmr_env.metrics.spans import reaches

    refined = refine(ensemble.act, cache, np.arange(len(cache)), ensemble.options)
    before, after = reaches(refined.before, GOOD), reaches(refined.after, GOOD)
    if qid is None:
        qid = str(cache.sample(int(refined.samples[(after & ~before).argmax()])).qid)
    env = VMREnv(cache.manifest["dataset"], source=cache.path, render_mode="ansi", **ensemble.options)
    observation, info = env.reset(seed=0, options={"qid": qid})
    pictures, tious, over = [env.render()], [info["tiou"]], False
    while not over:
        (action,) = ensemble.act(observation[None], info["action_mask"][None])
        observation, _, over, _, info = env.step(action)
    pictures.append(env.render())
    tious.append(info["tiou"])
    return [
        f"Before: where the frozen detector sees the moment, tIoU {tious[0]:.2f}",
        *(str(pictures[0]), ""),
        f"After: where the agent has moved it, tIoU {tious[1]:.2f}",
        *(str(pictures[1]), ""),
        f"All {len(cache):,} test queries (simulated videos): {100 * before.mean():.1f} % of moments have "
        f"tIoU {GOOD} or more before, {100 * after.mean():.1f} % after.",
    ]
