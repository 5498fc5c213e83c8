"""Markdown in docstrings, as reStructuredText: what Sphinx's autodoc reads.

Docstrings have Google's sections, which napoleon knows, and otherwise plain Markdown: headings, tables,
lists, code that is indented by four, and names in single backticks.
"""

import re
import textwrap
from collections.abc import Iterator

_SECTION = re.compile(
    r"^(?:Args|Arguments|Attributes|Returns|Raises|Yields|Example|Examples|Note|Warning):$", re.MULTILINE
)
_ARGUMENT = re.compile(r"( {4})?(\w+(?:, \w+)*): (?=\S)")
_RULE = re.compile(r"\s*\|[-:| ]+\|$")
_ITEM = re.compile(r"^(\s*)(?:[*-]|\d+\.) ")


def restructured(lines: list[str]) -> None:
    """Change the lines of a docstring in place."""
    lines[:] = list(_separated(_converted(lines)))


def _converted(lines: list[str]) -> Iterator[str]:
    """Tables, headings, arguments and code blocks; the other lines as they are."""
    at = 0
    section = False  # such as Args
    while at < len(lines):
        line = lines[at]
        if line.lstrip().startswith("|") and at + 1 < len(lines) and _RULE.match(lines[at + 1]):
            end = next(
                (i for i in range(at, len(lines)) if not lines[i].lstrip().startswith("|")), len(lines)
            )
            yield from _table([lines[at], *lines[at + 2 : end]])
            at = end
            continue
        section = bool(_SECTION.match(line)) or (section and (not line or line.startswith(" ")))
        if section:
            yield _literals(line)
        elif heading := re.match(r"#+ (.+)", line):
            yield from ("", f".. rubric:: {heading[1]}", "")
        elif at and _begins_arguments(lines, at):
            end = next((i for i in range(at, len(lines)) if not lines[i]), len(lines))
            yield from _arguments(lines[at:end])
            at = end
            continue
        elif line.startswith("    ") and _begins_code(lines, at):
            end = next(
                (i for i in range(at, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines)
            )
            yield from ("::", "", *lines[at:end])
            at = end
            continue
        else:
            yield _literals(line)
        at += 1


def _begins_arguments(lines: list[str], at: int) -> bool:
    """Whether a list `name: what it is` begins here, under a heading or a line that ends with a colon."""
    return bool(_ARGUMENT.match(lines[at])) and (
        lines[at - 1].startswith("## ") or lines[at - 1].endswith(":")
    )


def _arguments(lines: list[str]) -> Iterator[str]:
    """Arguments, whose further lines are indented by four, as a list."""
    yield ""
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        yield _ARGUMENT.sub(r"-   ``\2``: ", _literals(line))


def _begins_code(lines: list[str], at: int) -> bool:
    """Whether an indented line stands after an empty one that ends a paragraph of no indentation."""
    before = next((line for line in reversed(lines[:at]) if line), "")
    return (
        at > 0
        and not lines[at - 1]
        and not before.startswith(" ")
        and not before.endswith("::")
        and not _ITEM.match(before)
    )


def _literals(line: str) -> str:
    """Names that may lead somewhere as they are, other code as literals, special signs as text."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([|\\]|(?<=\w)_(?!\w)|\*(?=\w))", r"\\\1", parts[i])
    for i in range(1, len(parts), 2):
        code = parts[i].strip("`")
        linked = re.fullmatch(r"[A-Za-z_][\w.]*", code) and (code[0].isupper() or "." in code)
        parts[i] = f"`{code}`" if linked else f"``{code}``"
        if parts[i + 1][:1].isalnum():
            parts[i + 1] = "\\ " + parts[i + 1]
    return "".join(parts)


def _table(rows: list[str]) -> Iterator[str]:
    """A Markdown table, first row its head, as a list-table."""
    yield from ("", ".. list-table::", "   :header-rows: 1", "")
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row.strip().strip("|"))
        for i, cell in enumerate(cells):
            yield f"   {'*' if i == 0 else ' '} - {_literals(cell.strip())}".rstrip()
    yield ""


def _separated(lines: Iterator[str]) -> Iterator[str]:
    """Lists with an empty line before them, and their further lines as deep as the text of the item."""
    before, item = "", None
    for line in lines:
        found = _ITEM.match(line)
        depth = len(line) - len(line.lstrip())
        if found:
            if before and not item and len(before) - len(before.lstrip()) <= len(found[1]):
                yield ""
            item = found
        elif not before or not line:
            item = item if not line or (item and depth >= item.end()) else None
        elif item and len(item[1]) <= depth < item.end():
            line = " " * item.end() + line.lstrip()
        yield line
        before = line
