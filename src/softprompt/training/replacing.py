"""A run that takes another's place: what was there is kept aside until the new run has made its first step.

Owns the folder within a run's folder that holds it meanwhile. Knows nothing of what is in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Replaced(TrainerCallback):
    """What a run's folder held before a run that is forced to replace it.

    Args:
        record: the file by which a folder is known for a run's.
    """

    def __init__(self, record: Path) -> None:
        self._record, self._folder, self._aside = record, record.parent, record.parent / ".replaced"

    def put_aside(self) -> None:
        """Empty the folder for a new run."""
        self._aside.mkdir()
        # The record goes last, and comes back first: where it is aside, all else is.
        for entry in sorted(set(self._folder.iterdir()) - {self._aside}, key=lambda entry: entry == self._record):
            entry.rename(self._aside / entry.name)

    def put_back(self) -> None:
        """Undo `put_aside`, where a new run has not begun; what there is of it goes."""
        if not self._aside.is_dir():
            return
        if (self._aside / self._record.name).exists():
            for entry in set(self._folder.iterdir()) - {self._aside}:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for entry in sorted(self._aside.iterdir(), key=lambda entry: entry.name != self._record.name):
            entry.rename(self._folder / entry.name)
        self._aside.rmdir()

    def drop(self) -> None:
        """Give up what is aside: the new run has begun."""
        if self._aside.is_dir():
            shutil.rmtree(self._aside)

    @contextmanager
    def put_back_on_failure(self, first: bool) -> Iterator[None]:
        """Within it a new run begins; of several processes the first one looks after the folder."""
        try:
            yield
        except KeyboardInterrupt:  # it is to be gone on with
            if first:
                self.drop()
            raise
        except Exception:
            if first:
                self.put_back()
            raise

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.drop()
