"""The vLLM engine where vLLM is not installed; `test_vllm.py` has the rest."""

from __future__ import annotations

import sys

import pytest

from softprompt.errors import SoftPromptError
from softprompt.serving.vllm import VllmEngine


def test_its_absence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it fails, installed or not
    with pytest.raises(SoftPromptError, match=r"pip install 'softprompt\[vllm\]'"):
        VllmEngine("smollm2-135m")
