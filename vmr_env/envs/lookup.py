"""Parts by name: those of the package, those that a plugin registers, and `"module:name"` strings."""

import difflib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Generic, TypeVar

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """Parts of one kind by name.

    Args:
        kind: what they are, for messages.
        own: those of the package.
        type: their type.
    """

    def __init__(self, kind: str, own: dict[str, Part], type: type[Part]) -> None:
        self._kind, self._parts, self._type = kind, dict(own), type

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def add(self, name: str, part: Part) -> None:
        """Register a part; the same one again changes nothing.

        Raises:
            ValueError: another part has the name, or the name or the part is none.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{self._kind} {name!r}: expected a name of letters, digits and underscores")
        if self._parts.setdefault(name, self._checked(name, part)) != part:
            raise ValueError(f"{self._kind} {name!r} is registered already, choose another name")

    def get(self, name: str, others: Iterable[str] = ()) -> Part:
        """The part of that name, or the one that `"module:name"` imports.

        Args:
            name: of the part.
            others: further names that could have been meant.

        Raises:
            ValueError: there is none; the message suggests the nearest name.
        """
        if name in list(self._parts):  # compared, not hashed: it may be of any type
            return self._parts[name]
        if isinstance(name, str) and ":" in name:
            module, _, attribute = name.partition(":")
            try:
                return self._checked(name, getattr(import_module(module), attribute))
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{self._kind} {name!r} cannot be imported: {error}") from None
        known = [*others, *self._parts]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"No {self._kind} {name!r}.{hint} Known: {', '.join(known)}, or 'module:name'.")

    def _checked(self, name: str, part: Any) -> Part:
        if not isinstance(part, self._type):
            found = type(part).__name__
            raise ValueError(f"{self._kind} {name!r} is of type {found}, expected {self._type.__name__}")
        return part
