"""The folder of a comparison: the plan, what is finished, what was learned, the logs and the report.

Owns the names in it, and whether it may be gone on with. Knows nothing of how a job is done.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from softprompt.comparison.plan import Plan
from softprompt.comparison.results import Fault, Measured, Part, Result, Trained
from softprompt.errors import SoftPromptError
from softprompt.files import write_file

_PLAN = "plan.json"


class Folder:
    """A comparison's folder; jobs go by their names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, plan: Plan, *, force: bool) -> None:
        """Make the folder, or check that what is in it belongs to this plan; `force` replaces another comparison.

        Raises:
            SoftPromptError: it holds another comparison (without `force`), something else, or can't be written.
        """
        text = plan.model_dump_json(indent=1)
        record = self.path / _PLAN
        try:
            if record.exists() and record.read_text(encoding="utf-8") == text and not force:
                return
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                if not force:
                    what = "holds another comparison" if record.exists() else "exists"
                    raise SoftPromptError(f"{self.path} {what}: choose another --output, or --force to replace it")
                if not record.exists():
                    raise SoftPromptError(
                        f"{self.path} is not a comparison's folder (it has no {_PLAN}): it is not replaced"
                    )
                # The record goes last: what a kill leaves is still known for a comparison's folder.
                for entry in [*(set(self.path.iterdir()) - {record}), record]:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            write_file(record, text)
        except OSError as error:
            raise SoftPromptError(f"{self.path}: the comparison's folder can't be made: {error.strerror}") from error

    def artifact(self, job: str) -> Path:
        """Where what a job has learned is kept: a prompt, an adapter, a model, or examples."""
        return self.path / "artifacts" / job

    def log(self, job: str) -> Path:
        """What a job's process printed."""
        return self.path / "logs" / f"{job}.log"

    def read(self, job: str, part: Part) -> Result | None:
        """A result; None where there is none, or one that can't be read and so has to be made again."""
        try:
            found = json.loads(self._result(job, part).read_text(encoding="utf-8"))
            if found["status"] != "done":
                return Fault.model_validate(found)
            return (Trained if part == "trained" else Measured).model_validate(found)
        except (OSError, ValueError, LookupError, TypeError):  # pydantic's are ValueErrors
            return None

    def write(self, job: str, part: Part, document: dict[str, Any]) -> None:
        """Keep a result."""
        write_file(self._result(job, part), json.dumps(document))

    def _result(self, job: str, part: Part) -> Path:
        return self.path / part / f"{job}.json"
