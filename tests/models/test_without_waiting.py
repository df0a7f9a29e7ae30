"""A step asks a GPU for nothing, and each kind of base and answer runs on one: pretended ones, in processes."""

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
@pytest.mark.parametrize("module", ["steps_without_waiting", "kinds_on_a_device"])
def test_nothing_waits_or_is_left_on_the_cpu(module: str) -> None:
    command = [sys.executable, "-m", f"tests.models.{module}"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


def test_what_goes_over_together_keeps_its_shapes() -> None:
    tensors = [torch.arange(6).view(2, 3), torch.arange(0), torch.arange(4)]
    assert to_device(tensors, torch.device("cpu")) == tensors  # themselves
    assert [one.shape for one in to_device(tensors, torch.device("meta"))] == [one.shape for one in tensors]
