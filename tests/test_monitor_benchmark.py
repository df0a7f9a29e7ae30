"""The monitor's benchmark takes turns, times the monitor alone, and leaves it as it was. No clock is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import monitor

import softprompt as sp
from softprompt.training.monitor import Monitor
from tests.conftest import make_base

TEXTS = ["a joy to watch", "dull", "fine acting, and a plot that holds", "no"]
ROWS = [sp.Row({"text": text}, i % 2, " positive" if i % 2 else " negative") for i, text in enumerate(TEXTS * 4)]


def test_the_turns_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    arguments = ["--base", str(tmp_path / "base"), "--steps", "4", "--rounds", "1", "--prompt-lengths", "3"]
    arguments += ["--log-every", "2", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    before = vars(Monitor).copy()
    monitor.main([*arguments, "--json"], ROWS)
    assert vars(Monitor) == before
    document = json.loads((tmp_path / "out" / "monitor.json").read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == document
    (case,) = document["cases"]
    assert (case["P"], case["log_every"]) == (3, 2)
    assert 0 < case["monitor_milliseconds_per_step"] < case["step_milliseconds_with"]
    assert case["monitor_seconds_at_start"] > 0
    assert (tmp_path / "out" / "monitor.md").read_text("utf-8") == monitor.table(document)
