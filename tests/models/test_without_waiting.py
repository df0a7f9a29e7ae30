"""A training step asks a GPU for nothing: it is run on a pretended one, in a process of `steps_without_waiting.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from softprompt.models.transfer import to_device


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch knows no devices written in Python",
)
def test_nothing_in_a_training_step_waits_for_the_device() -> None:
    command = [sys.executable, "-m", "tests.models.steps_without_waiting"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


def test_what_goes_over_together_keeps_its_shapes() -> None:
    tensors = [torch.arange(6).view(2, 3), torch.arange(0), torch.arange(4)]
    assert to_device(tensors, torch.device("cpu")) == tensors  # themselves
    assert [one.shape for one in to_device(tensors, torch.device("meta"))] == [one.shape for one in tensors]
