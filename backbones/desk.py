"""An actor on the driver's node: workers fetch folders from it, and leave word of what they do.

Each job starts one, so this module imports next to nothing: no torch, and nothing of what the messages say.
"""

from collections import deque
from pathlib import Path
from typing import Any

import ray

from vmr_env.files.folders import files_of


class Desk:
    """Has the driver's folders, and what workers tell.

    Args:
        folders: path by the hash of its content.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders
        self._sent: dict[str, list[tuple[str, Any]]] = {}
        self._told: deque[bytes] = deque()  # which threads may share

    def files(self, digest: str) -> list[tuple[str, Any]]:
        """Names of a folder's files, and references to their contents in the object store."""
        if digest not in self._sent:
            folder = Path(self._folders[digest])
            self._sent[digest] = [(name, ray.put(content)) for name, content in files_of(folder)]
        return self._sent[digest]

    def tell(self, message: bytes) -> None:
        """Leave word."""
        self._told.append(message)

    def told(self) -> list[bytes]:
        """What was told since the last call."""
        return [self._told.popleft() for _ in range(len(self._told))]
