from __future__ import annotations

from pathlib import Path

import pytest

from softprompt import SoftPromptError
from softprompt.training.trajectory import PERCENTILES, Measurement, Start, Trajectory, Validated


def start() -> Start:
    return Start(
        norm=[1.0, 2.0],
        z=[0.0, 1.0],
        trained=False,
        learning_rate=0.03,
        steps_per_pass=20,
        vocabulary_mean=1.5,
        vocabulary_deviation=0.5,
        vocabulary_percentiles=[0.5 + 0.01 * percent for percent in PERCENTILES],
    )


def measurement(step: int, loss: float = 1.0) -> Measurement:
    pair = [0.5, 0.25]
    numbers = dict.fromkeys(("gradient", "update", "norm", "z", "drift", "cosine"), pair)
    return Measurement(step=step, loss=loss, learning_rate=0.03, **numbers)


def whole() -> Trajectory:
    return Trajectory(start(), [measurement(s) for s in (1, 2, 4)], [Validated(step=4, figures={"accuracy": 0.5})])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "monitor.jsonl"
    whole().write(file)
    assert Trajectory.read(file) == whole()
    again = Trajectory(start())
    again.write(file)
    for entry in (*whole().measurements, *whole().validations):
        again.add(entry, file)
    assert again == whole() == Trajectory.read(file)
    assert [path.name for path in tmp_path.iterdir()] == ["monitor.jsonl"]


@pytest.mark.parametrize("cut", [1, 17, 60])
def test_a_half_written_last_line_is_passed_over(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "monitor.jsonl"
    whole().write(file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
    assert Trajectory.read(file) == Trajectory(start(), whole().measurements)


def test_lines_of_another_kind_or_without_a_number_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "monitor.jsonl"
    whole().write(file)
    with file.open("ab") as handle:
        handle.write(b'\xff\xfe\n[]\n"x"\nnull\n{"kind": "measurement"}\n{"kind": "dream"}\n{"kind": []}\n\n')
        handle.write(b'{"kind": "start", "norm": "<script>"}\n' + b"[" * 100_000 + b"\n")
    assert Trajectory.read(file) == whole()


def test_no_step_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "monitor.jsonl"
    doubled = Trajectory(start(), [measurement(1), measurement(2, 5.0), measurement(4), measurement(2, 3.0)])
    for entry in doubled.measurements:
        Trajectory().add(entry, file)
    assert [(one.step, one.loss) for one in Trajectory.read(file).measurements] == [(1, 1.0), (2, 3.0), (4, 1.0)]


def test_a_trajectory_up_to_a_step() -> None:
    early = whole().until(3)
    assert [one.step for one in early.measurements] == [1, 2]
    assert early.validations == []
    assert early.start == start()
    assert whole().until(4) == whole()


def test_no_file_is_no_trajectory_and_a_folder_is_an_error(tmp_path: Path) -> None:
    assert Trajectory.read(tmp_path / "none") == Trajectory()
    with pytest.raises(SoftPromptError, match="cannot be read"):
        Trajectory.read(tmp_path)
    with pytest.raises(SoftPromptError, match="cannot be written"):
        whole().write(tmp_path)
    with pytest.raises(SoftPromptError, match="cannot be written"):
        whole().add(measurement(5), tmp_path)
