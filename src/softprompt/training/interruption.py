"""A Ctrl-C that is not lost.

Python drops a KeyboardInterrupt that is raised within a finaliser or a weak reference's callback, and PyTorch runs many
of these. Owns the signal's handler while a run learns. Knows nothing of runs.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback


class Interruption(TrainerCallback):
    """Raises the KeyboardInterrupt of a SIGINT again at the next step's end, where the first was dropped.

    A context manager around training. Changes nothing outside the main thread, or where the program has a handler of
    its own.
    """

    def __init__(self) -> None:
        self._came = self._ours = False

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self._came:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)
