"""Macros of the pages: what stands between `<!-- KIND NAME -->` and `<!-- end -->` is made from the code.

    python docs/macros.py        write it into all pages anew

Pages in the repository have tables and help texts in full, and link to docstrings and other files; the site
has these in full too.
"""

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import gymnasium
from gymnasium.envs.registration import EnvSpec, registry

from vmr_env.agents.tprl.config import TprlConfig, default_config, paper_config
from vmr_env.envs.actions import KINDS

ROOT = Path(__file__).resolve().parents[1]
Maker = Callable[[str], str]
_WIDTH = 100
_CONTEXT: Mapping[str, Any] = {"max_content_width": _WIDTH, "help_option_names": ["-h", "--help"]}


def docstring(name: str) -> str:
    """Docstring of `package.module.Object`, or of a module, as the API reference has it."""
    kind = "module"
    if not _is_module(name):
        module, _, member = name.rpartition(".")
        kind = "class" if inspect.isclass(getattr(importlib.import_module(module), member)) else "function"
    options = "" if kind == "function" else "   :no-members:\n"
    return f"```{{eval-rst}}\n.. auto{kind}:: {name}\n   :no-index:\n{options}```"


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def link_to_docstring(name: str) -> str:
    """Link to the module, in the repository, that a docstring is from."""
    module = name if _is_module(name) else name.rpartition(".")[0]
    source = Path(str(importlib.import_module(module).__file__)).resolve().relative_to(ROOT).as_posix()
    return f"See the docstring of `{name}` in [{source}](../{source})."


def link_to_file(path: str) -> str:
    """Link to a file of the repository."""
    return f"See [{path}](../{path})."


def table(name: str) -> str:
    """A mapping of names to sentences, `package.module.MAPPING`, as a list."""
    module, _, member = name.rpartition(".")
    mapping = getattr(importlib.import_module(module), member)
    return "\n".join(f"- `{key}`: {text}" for key, text in mapping.items())


def help_of(name: str) -> str:
    """Help text of a command, `vmr-env` first."""
    from vmr_env.benchmarks.cli.main import main
    from vmr_env.benchmarks.cli.programs import Forwarded

    command: click.Command = main
    context = click.Context(main, info_name="vmr-env", **_CONTEXT)
    for part in name.split()[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[part]
        context = click.Context(command, info_name=part, parent=context, **_CONTEXT)
    if isinstance(command, Forwarded):
        parser = command.parser(name)
        parser.formatter_class = partial(parser.formatter_class, width=_WIDTH)
        text = parser.format_help().rstrip()
    else:
        text = command.get_help(context)
    return f"```text\n{text}\n```"


def included(path: str) -> str:
    """A Markdown file of the repository, without its title and without empty lines between rows of tables."""
    text = (ROOT / path).read_text(encoding="utf-8")
    text = re.sub(r"\|\n\n+(?=\|(?!.*\n\|[-:| ]+\n))", "|\n", text)
    return re.sub(r"\A# .*\n", "", text)


def tprl_settings(_: str) -> str:
    """Every setting of TPRL: published for each data set, and ours."""
    names = ("charades", "qvhighlights", "tacos")
    columns = [_settings(paper_config(name)) for name in names] + [_settings(default_config("charades"))]
    rows = [f"| `{name}` | " + " | ".join(column[name] for column in columns) + " |" for name in columns[0]]
    return "\n".join(
        ["| setting | Charades-STA | QVHighlights | TACoS | ours |", "|---|---|---|---|---|", *rows]
    )


def _settings(config: TprlConfig) -> dict[str, str]:
    """Values by name, those of the schedule among them."""
    schedule = config.schedule
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "schedule"}
    told = {
        "schedule: epochs of the stages": ", ".join(str(phase.epochs) for phase in schedule.phases),
        "schedule: rl_coef": schedule.rl_coef,
        "schedule: cosine decay": any(phase.cosine for phase in schedule.phases),
    }
    return {name: str(value) for name, value in (told | values).items()}


def environments(_: str) -> str:
    """Every registered id, with its arguments and the data that it needs."""
    rows = ["| id | data set | arguments | data of your own |", "|---|---|---|---|"]
    for spec in _specs():
        others = ", ".join(f"`{name}={value!r}`" for name, value in _arguments(spec).items())
        rows.append(f"| `{spec.id}` | {spec.kwargs['dataset']} | {others} | {needed(spec)} |")
    return "\n".join(rows)


def needed(spec: EnvSpec) -> str:
    """The data without which an environment cannot be made."""
    if "-Spans-" in spec.id:
        return "`annotations`, `predictions`"
    if "-Head-" in spec.id and spec.kwargs["dataset"] != "charades":
        return "`source`, a cache with decoder states"
    return ""


def _specs() -> list[EnvSpec]:
    return [spec for name, spec in registry.items() if name.startswith("VMR-")]


def environment(name: str) -> str:
    """Facts about an environment as it is made: spaces, horizon, reward, start and end."""
    env = _made(name)
    mode, arguments = env.unwrapped.action_mode, _arguments(env.spec)
    stage = env.unwrapped.curriculum[env.unwrapped.stage]
    alike = (env.spec.entry_point, arguments)
    others = [
        f"`{spec.id}`"
        for spec in _specs()
        if (spec.entry_point, _arguments(spec)) == alike and spec.id != name
    ]
    several = f"a random one of the best {stage.start_k} proposals"
    facts = {
        "import": f'`gymnasium.make("vmr_env:{name}")`',
        "on other data": ", ".join(others),
        "action space": f"`{env.action_space}`",
        "observation space": f"`Box`, float32, {env.observation_space.shape[0]} numbers of the default data",
        "steps of an episode": f"at most {mode.horizon}",
        "reward": f"growth of `{stage.reward}`",
        "starts at": "the best proposal" if stage.start_k == 1 else several,
        "free actions": ", ".join(sorted(stage.free & mode.groups.keys())),
        "ends": "`terminated` on stop and after the last step; never `truncated`",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {fact} | {value} |" for fact, value in facts.items())])


def actions(name: str) -> str:
    """What each action of a discrete environment does: moves by the shifts of both sides, then others."""
    mode = _made(name).unwrapped.action_mode
    kinds, choices = mode.choices[:, 0].tolist(), mode.choices.tolist()
    shifts = [f"{offset:+g}" if offset else "0" for offset in mode.offsets[0].tolist()]
    numbers = {
        (first, second): number
        for number, (kind, first, second) in enumerate(choices)
        if kind == KINDS["move"]
    }
    grid = [
        [str(numbers.get((first, second), "")) for second in range(len(shifts))]
        for first in range(len(shifts))
    ]
    return "\n".join(
        [
            f"| start \\ end, clips | {' | '.join(shifts)} |",
            "|---" * (1 + len(shifts)) + "|",
            *(f"| **{shift}** | {' | '.join(row)} |" for shift, row in zip(shifts, grid, strict=True)),
            "",
            "| action | what it does |",
            "|---|---|",
            *(f"| {_range(kinds, KINDS[kind])} | {what} |" for kind, what in _OTHER_ACTIONS.items()),
        ]
    )


_OTHER_ACTIONS = {"switch": "switch to the first, second, … proposal", "stop": "stop"}


def _range(kinds: list[int], kind: int) -> str:
    """The first and the last number of a kind of actions."""
    first, last = kinds.index(kind), len(kinds) - 1 - kinds[::-1].index(kind)
    return str(first) if first == last else f"{first} to {last}"


def _made(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data are simulated
        return gymnasium.make(f"vmr_env:{name}")


def _arguments(spec: EnvSpec) -> dict[str, Any]:
    """Arguments of an id but its data set."""
    return {name: value for name, value in spec.kwargs.items() if name != "dataset"}


MAKERS: Mapping[str, tuple[Maker, Maker]] = {
    "docstring": (docstring, link_to_docstring),
    "table": (table, table),
    "help": (help_of, help_of),
    "include": (included, link_to_file),
    "environments": (environments, environments),
    "environment": (environment, environment),
    "actions": (actions, actions),
    "tprl_settings": (tprl_settings, tprl_settings),
}
"""By kind, what makes the text on the site and what makes that in the repository."""

_MACRO = re.compile(rf"(<!-- ({'|'.join(MAKERS)})(?: (.+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def expand(markdown: str) -> str:
    """A page of the site: every macro replaced."""
    return _MACRO.sub(lambda found: MAKERS[found[2]][0](found[3]), markdown)


def renew(markdown: str) -> str:
    """A page of the repository: what stands inside of every macro made anew."""
    return _MACRO.sub(lambda found: f"{found[1]}\n{MAKERS[found[2]][1](found[3])}\n\n{found[4]}", markdown)


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").glob("*.md")):
        page.write_text(renew(page.read_text(encoding="utf-8")), encoding="utf-8")
