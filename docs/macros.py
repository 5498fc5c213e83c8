"""Macros of the pages: `<!-- docstring NAME -->` and its like put docstrings, help texts and files there."""

import importlib
import inspect
import re
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]


def docstring(name: str) -> str:
    """Docstring of `package.module.Object`, or of a module, as the API reference has it."""
    try:
        importlib.import_module(name)
        kind = "module"
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        kind = "class" if inspect.isclass(getattr(importlib.import_module(module), member)) else "function"
    options = "" if kind == "function" else "   :no-members:\n"
    return f"```{{eval-rst}}\n.. auto{kind}:: {name}\n   :no-index:\n{options}```"


def table(name: str) -> str:
    """A mapping of names to sentences, `package.module.MAPPING`, as a list."""
    module, _, member = name.rpartition(".")
    mapping = getattr(importlib.import_module(module), member)
    return "\n".join(f"- `{key}`: {text}" for key, text in mapping.items())


def help_of(name: str) -> str:
    """Help text of a command, `vmr-env` first."""
    from vmr_env.benchmarks.cli.main import main

    command: click.Command = main
    context = click.Context(main, info_name="vmr-env", max_content_width=100)
    for part in name.split()[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[part]
        context = click.Context(command, info_name=part, parent=context, max_content_width=100)
    return f"```text\n{command.get_help(context)}\n```"


def included(path: str) -> str:
    """A Markdown file of the repository, without its title and without empty lines between rows of tables."""
    text = (ROOT / path).read_text(encoding="utf-8")
    text = re.sub(r"\|\n\n+(?=\|(?!.*\n\|[-:| ]+\n))", "|\n", text)
    return re.sub(r"\A# .*\n", "", text)


MAKERS = {
    "docstring": docstring,
    "table": table,
    "help": help_of,
    "include": included,
}


def expand(markdown: str) -> str:
    """Replace every macro of a page."""
    return re.sub(rf"<!-- ({'|'.join(MAKERS)}) (.+?) -->", lambda found: MAKERS[found[1]](found[2]), markdown)
