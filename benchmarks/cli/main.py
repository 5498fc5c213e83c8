"""The command line, `vmr-env`: what the library does, for people and for scripts.

Exit codes: 0 all is well, 1 the data have problems, 2 the command was wrong, 130 interrupted.
"""

import click

import vmr_env
from vmr_env.benchmarks.cli.cache import cache
from vmr_env.benchmarks.cli.convert import convert
from vmr_env.benchmarks.cli.demo import demo
from vmr_env.benchmarks.cli.evaluate import evaluate
from vmr_env.benchmarks.cli.measure import measure
from vmr_env.benchmarks.cli.play import play
from vmr_env.benchmarks.cli.programs import bench, dense, encode, graft, predict, tprl, train
from vmr_env.benchmarks.cli.refine import refine
from vmr_env.benchmarks.cli.report import report
from vmr_env.benchmarks.cli.validate import validate
from vmr_env.programs import wrong_word

COMMANDS = (
    demo,
    train,
    cache,
    tprl,
    dense,
    refine,
    predict,
    graft,
    convert,
    evaluate,
    measure,
    validate,
    encode,
    play,
    report,
    bench,
)


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if wrong := wrong_word(args):
            ctx.fail(wrong)
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.version_option(vmr_env.__version__, prog_name="vmr-env")
def main() -> None:
    """Video moment retrieval as reinforcement-learning environments.

    \b
    An episode before and after a trained agent, in seconds:
      vmr-env demo

    \b
    From nothing to a trained agent and an open report:
      vmr-env tprl --out runs/first
      open runs/first/report.html

    \b
    From your model's predictions:
      vmr-env validate predictions my_model.jsonl --annotations annotations.jsonl
      vmr-env evaluate my_model.jsonl annotations.jsonl
      vmr-env tprl --dataset charades --predictions my_model.jsonl --annotations annotations.jsonl

    Exit codes: 0 all is well, 1 the data have problems, 2 the command was wrong, 130 interrupted.
    """


for _command in COMMANDS:
    main.add_command(_command)

if __name__ == "__main__":
    main()
