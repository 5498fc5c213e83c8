"""What MkDocs does before it reads a page: puts docstrings, help texts and the repository's files into it."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]


def docstring(name: str) -> str:
    """Docstring of `package.module.Object`, or of a module, as Markdown."""
    try:
        return inspect.getdoc(importlib.import_module(name)) or ""
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        return inspect.getdoc(getattr(importlib.import_module(module), member)) or ""


def arguments(text: str) -> str:
    """The lines `name: what it is` of a docstring's section of arguments as a list."""
    return re.sub(r"^(?:    )?(\w+(?:, \w+)*): (?=\S)", r"- `\1`: ", text, flags=re.MULTILINE)


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
    """A Markdown file of the repository, its headings one level lower and its title left out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.sub(r"^#(?=#)", "", re.sub(r"\A# .*\n", "", text), flags=re.MULTILINE)


MAKERS = {
    "docstring": docstring,
    "table": table,
    "arguments": lambda name: arguments(docstring(name)),
    "help": help_of,
    "include": included,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- docstring NAME -->` and its like; MkDocs calls this for every page."""
    return re.sub(rf"<!-- ({'|'.join(MAKERS)}) (.+?) -->", lambda found: MAKERS[found[1]](found[2]), markdown)
