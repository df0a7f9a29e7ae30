"""A Ctrl-C ends a run, wherever it comes."""

from __future__ import annotations

import signal
import threading

import pytest

from softprompt.training.interruption import Interruption

pytestmark = pytest.mark.usefixtures("interruptible")


class Dropping:
    """Gets the signal within its finaliser, where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_drops_is_raised_at_the_steps_end():
    with Interruption() as interruption:
        interruption.on_step_end()
        Dropping()
        with pytest.raises(KeyboardInterrupt):
            interruption.on_step_end()


def test_any_other_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_own_handler_stays():
    found = []
    before = signal.signal(signal.SIGINT, lambda number, frame: found.append(number))
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            interruption.on_step_end()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [signal.SIGINT]


def test_another_thread_changes_nothing():
    found = []

    def work() -> None:
        with Interruption():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
