"""`softprompt predict --ray`: a Ray Data job gives what the plain command gives. `make test-ray` runs it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.conftest import make_base
from tests.evaluation.test_batch import ROWS, kill_once_begun, make_batch
from tests.test_cli import run, save_base


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("ray.data", reason="`make test-ray` runs it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers give way to all else, of which a machine has much
    make_batch(tmp_path)
    return tmp_path


def test_it_is_what_the_plain_command_gives(work: Path) -> None:
    """By the commands on docs/cluster.md."""
    lines = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text("utf-8").splitlines()
    plain, over_ray = (shlex.split(line)[1:] for line in lines if line.startswith("softprompt predict"))
    result = run(*plain, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    # A run that is killed leaves what it has; another, over Ray too, goes on with the rest.
    over_ray += ["--dtype", "float32"]
    done = kill_once_begun(over_ray, Path(".over-ray.parquet.part"))
    assert 0 < done < ROWS
    result = run(*over_ray)
    assert result.exit_code == 0, result.output
    assert "rows are answered already" in result.stderr
    assert "on 2 Ray workers" in result.stderr
    assert f"1 of {ROWS:,} rows has an error in place of an answer" in result.stderr
    found, expected = (pyarrow.parquet.read_table(file).to_pylist() for file in ("over-ray.parquet", "out.parquet"))
    assert [one["id"] for one in found] == list(range(ROWS))
    for one, other in zip(found, expected, strict=True):
        assert (one.pop("probability") or 0.0) == pytest.approx(other.pop("probability") or 0.0, rel=1e-5)
        assert one == other


def test_bad_input_is_one_line(work: Path) -> None:
    make_wrong = save_base(make_base(seed=1), work / "wrong")
    for base, said in ((make_wrong, "error: this prompt was made for base 'tiny-llama'"), ("base", "")):
        result = run("predict", "mood", "a text", "--base", base, "--ray", "local")
        assert result.exit_code == bool(said)
        assert "Traceback" not in result.output
        assert said in result.stderr
    assert run("predict", "mood", "a text", "--base", "base").stdout == result.stdout
    result = run("predict", "mood", "a text", "--ray", "127.0.0.1:1", "--base", "base")
    assert result.stderr.splitlines()[-1].startswith("error: --ray 127.0.0.1:1: no cluster can be reached there")
