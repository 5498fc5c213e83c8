"""YAML files that people write: read safely, and refused where they say something twice."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vmr_env.errors import DataError, Problem, shorten


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """The safe loader, which also refuses a key that stands twice in a mapping: YAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    message = f"stands twice in one mapping, line {key_node.start_mark.line + 1}"
                    raise yaml.constructor.ConstructorError(None, None, f"{shorten(key)} {message}")
                seen.add(key)
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        DataError: the file cannot be read, is no YAML, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(Problem(str(path), None, None, f"is no readable YAML ({reason})")) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        message = f"holds {shorten(content)}; expected a mapping with names as keys"
        raise DataError(Problem(str(path), None, None, message))
    return content
