"""The benchmarks compare like with like, count arithmetic right, and write what they measured. No clock is judged."""

from __future__ import annotations

import argparse
import copy
import json
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import gradients, measure, peak_memory, scaling, sides, time_to_accuracy, train_many, training_step
from benchmarks.movies import INIT_TEXT, make_batches

import softprompt as sp
from softprompt.comparison.measuring import peak_memory as process_peak
from tests.conftest import make_base

TEXTS = ["a joy to watch", "dull", "fine acting, and a plot that holds", "no", "it drags on and on", "bright"]
ROWS = [sp.Row({"text": text}, i % 2, " positive" if i % 2 else " negative") for i, text in enumerate(TEXTS * 4)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """The tiny base as `load_base` finds it."""
    base = make_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize("length", [3, 20])
def test_all_sides_compute_the_same(tiny_base: sp.Base, length: int) -> None:
    batches = make_batches(tiny_base, ROWS, 4, 3)
    prompt = sp.SoftPrompt.from_text(tiny_base, INIT_TEXT, length)
    untouched = copy.deepcopy(tiny_base.model)
    made = {
        name: make(tiny_base.model if name == "softprompt" else untouched, prompt) for name, make in sides.SIDES.items()
    }
    assert made["softprompt"].kernel.startswith("packed/")
    for batch in batches:  # each after the step on the one before
        found = training_step.compare_gradients(made, batch)
        assert found["loss"]["softprompt"] == pytest.approx(found["loss"]["peft"], rel=1e-5)
        assert found["loss"]["softprompt"] == pytest.approx(found["loss"]["concatenation"], rel=1e-5)
        assert max(found["gradient_difference"].values()) < 1e-4
        for side in made.values():
            side.step(batch)
            assert side.prompt.dtype == torch.float32
            assert not torch.equal(side.prompt.detach(), prompt.embeddings)


def test_batches_learn_the_label_alone(tiny_base: sp.Base) -> None:
    (batch,) = make_batches(tiny_base, ROWS, 2, 1)
    for row, answer in enumerate([" negative", " positive"]):
        text = tiny_base.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
        assert text == f"Review: {TEXTS[row]}\nSentiment:{answer}"
        assert tiny_base.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100]) == answer


def test_useful_flops_counts_each_product_once(tiny_base: sp.Base) -> None:
    # The tiny Llama: 2 layers of q 32x32, k and v 16x32, o 32x32, three 64x32; a head of 258x32; 4 heads of width 8.
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    pairs = 10 + (4 * 5 + 15) + (4 * 2 + 3)
    expected = 4 * weights * (4 + 5 + 2) + 4 * 258 * 32 * 3 + 12 * 2 * 32 * pairs
    assert measure.useful_flops(tiny_base.model, 4, [5, 2], 3) == expected


def test_training_step_writes_table_json_and_plot(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    arguments = ["--base", folder, "--prompt-lengths", "2", "7", "--batch-sizes", "3", "--rounds", "2"]
    arguments += ["--dtype", "float32", "--device", "cpu", "--no-memory", "--json", "--out", str(out)]
    training_step.main(arguments, ROWS)
    document = json.loads((out / "training_step.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == document
    assert document["command"].startswith("python -m benchmarks.training_step --base")
    assert [(case["P"], case["B"], case["dtype"]) for case in document["cases"]] == [
        (2, 3, "float32"),
        (7, 3, "float32"),
    ]
    for case in document["cases"]:
        assert set(case["sides"]) == {"softprompt", "peft", "concatenation"}
        assert all(len(side["all_milliseconds"]) == 2 for side in case["sides"].values())
        assert case["gradient_difference"]["softprompt/peft"] < 1e-4
        assert 0 < case["padding"] < 1
    table = (out / "training_step.md").read_text(encoding="utf-8")
    assert table == training_step.table(document)
    assert f"| {folder}, float32, 7, 3, films |" in table
    assert document["command"] in table
    assert "<svg" in (out / "training_step.svg").read_text(encoding="utf-8")


def test_texts_of_a_length_end_with_their_label(tiny_base: sp.Base) -> None:
    films = make_batches(tiny_base, ROWS, 3, 2)
    for length in (5, 300):
        for batch, other in zip(make_batches(tiny_base, ROWS, 3, 2, length), films, strict=True):
            assert batch["input_ids"].shape == (3, length)
            assert batch["attention_mask"].all()
            for row in range(3):
                labels = batch["labels"][row]
                assert torch.equal(labels[labels != -100], other["labels"][row][other["labels"][row] != -100][-length:])
                assert labels[-1] != -100


def test_training_step_of_given_text_lengths(tmp_path: Path, folder: str) -> None:
    arguments = ["--base", folder, "--prompt-lengths", "2", "--batch-sizes", "2", "--rounds", "1", "--no-memory"]
    arguments += ["--dtype", "float32", "--device", "cpu", "--text-lengths", "9", "40", "--out", str(tmp_path)]
    training_step.main(arguments, ROWS)
    document = json.loads((tmp_path / "training_step.json").read_text(encoding="utf-8"))
    assert [(case["T"], case["tokens"]) for case in document["cases"]] == [(9, 18), (40, 80)]
    for part in document["cases"]:
        part["sides"][sides.FLASH] = part["sides"]["peft"]
        part["speed_ratio"][sides.FLASH] = 2.0
        part["gradient_to_float32"] = {"softprompt": 1e-3}
    table = training_step.table(document)
    assert "PEFT by FlashAttention 2" in table
    assert "P=2, B=2, T=40: softprompt 1.0e-03" in table


def test_the_gradients_distance_to_float32(tiny_base: sp.Base) -> None:
    (batch,) = make_batches(tiny_base, ROWS, 2, 1)
    prompt, plain = sp.SoftPrompt.from_text(tiny_base, INIT_TEXT, 3), copy.deepcopy(tiny_base.model).bfloat16()
    made = {
        name: make(copy.deepcopy(tiny_base.model).bfloat16() if name == "softprompt" else plain, prompt)
        for name, make in sides.SIDES.items()
    }
    found = training_step.compare_to_float32(plain, made, batch)
    assert set(found) == set(sides.SIDES)
    assert all(1e-5 < off < 0.1 for off in found.values())


def test_gradients_are_held_against_a_wider_reference(tmp_path: Path, folder: str) -> None:
    arguments = ["--base", folder, "--families", "llama", "--dtype", "float32", "bfloat16", "--seeds", "1"]
    gradients.main([*arguments, "--device", "cpu", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "gradients.json").read_text(encoding="utf-8"))
    found = {(case["model"], case["dtype"]): case for case in document["cases"]}
    assert set(found) == {("llama, tiny", "float32"), ("llama, tiny", "bfloat16"), (folder, "bfloat16")}
    narrow, half = found["llama, tiny", "float32"], found["llama, tiny", "bfloat16"]
    assert 0 < narrow["packed"] < 1e-4 < half["packed"] < 0.5
    assert half["ratio"] == pytest.approx(half["packed"] / half["concatenated"])
    document["cases"][0]["ratio"] = 2.0
    document["cases"].append({"model": "x", "dtype": "float16", "refused": "no route"})
    table = gradients.table(document)
    assert "concatenation's: llama, tiny in float32." in table
    assert "x in float16: no route" in table


def test_a_slow_dtype_is_skipped_openly_unless_asked_for(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "matmul_peak", lambda _, dtype: 1e9 if dtype == torch.bfloat16 else 4e9)
    arguments = ["--base", folder, "--prompt-lengths", "2", "--batch-sizes", "2", "--rounds", "1"]
    arguments += ["--device", "cpu", "--no-memory", "--out", str(tmp_path)]
    training_step.main(arguments, ROWS)
    document = json.loads((tmp_path / "training_step.json").read_text(encoding="utf-8"))
    assert [case["dtype"] for case in document["cases"]] == ["float32"]
    assert "0.25 times" in document["skipped"][0]
    assert document["skipped"][0] in training_step.table(document)
    training_step.main([*arguments, "--dtype", "bfloat16"], ROWS)
    document = json.loads((tmp_path / "training_step.json").read_text(encoding="utf-8"))
    assert [case["dtype"] for case in document["cases"]] == ["bfloat16"]
    assert document["skipped"] == []


def test_memory_that_does_not_suffice_is_said(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_case(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training_step, "measure_case", measure_case)
    arguments = ["--base", folder, "--quick", "--rounds", "1", "--dtype", "float32", "--device", "cpu"]
    training_step.main([*arguments, "--out", str(tmp_path)], ROWS)
    document = json.loads((tmp_path / "training_step_quick.json").read_text(encoding="utf-8"))
    assert document["cases"] == []
    assert "memory does not hold it" in document["skipped"][0]


@pytest.mark.long
def test_memory_is_that_of_a_process_of_its_own(tiny_base: sp.Base, folder: str) -> None:
    batches = make_batches(tiny_base, ROWS, 4, 2)
    prompt = sp.SoftPrompt.from_text(tiny_base, INIT_TEXT, 3)
    ballast = torch.ones(1 << 28)  # 1 GiB here must not count there
    sizes = [
        peak_memory.measure(side, folder, torch.float32, torch.device("cpu"), prompt, batches)
        for side in (peak_memory.LOADED_ONLY, "softprompt")
    ]
    assert process_peak(ballast.device) > 4 * len(ballast)
    assert 0 < sizes[0] < sizes[1] < process_peak(ballast.device)
    with pytest.raises(peak_memory.FailedError, match="peak memory of peft: exit 1"):
        peak_memory.measure("peft", f"{folder}-missing", torch.float32, torch.device("cpu"), prompt, batches)


def test_a_shape_gives_a_frozen_random_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sides.SHAPES, "llama-tiny", make_base().model.config)
    model = sides.open_model("llama-tiny", torch.bfloat16, torch.device("cpu"))
    assert model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("name", "billions"), [("llama-135m", 0.1345), ("llama-1b", 1.2358), ("llama-8b", 8.0303)])
def test_the_shapes_are_as_large_as_their_names(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = sides.AutoModelForCausalLM.from_config(sides.SHAPES[name])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-4)


def test_time_to_accuracy_stops_at_the_target_says_what_was_missed_and_goes_on(folder: str, tmp_path: Path) -> None:
    for name, rows in {"train": ROWS[:16], "dev": ROWS[16:], "test": ROWS[16:]}.items():
        lines = [json.dumps({"text": row.columns["text"], "label": ["bad", "good"][row.label or 0]}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    task = {
        "name": "films",
        "base": folder,
        "task": {"template": "Review: {text}\nSentiment:", "target": " {label}", "labels": ["bad", "good"]},
        "data": {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        "prompt": {"num_virtual_tokens": 3},
        "recipe": {"max_steps": 4, "batch_size": 4, "warmup_steps": 1},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    command = [str(tmp_path / "task.yaml"), "--device", "cpu", "--every", "2", "--results", str(tmp_path / "results")]
    for target in ("0", "1.1"):
        time_to_accuracy.main([*command, "--target", target])
    document = json.loads((tmp_path / "results" / "time_to_accuracy.json").read_text())
    reached, missed = document["rows"][:5], document["rows"][5:]
    assert [row["side"] for row in reached] == [row["side"] for row in missed] == list(time_to_accuracy.SIDES)
    assert {row["steps"] for row in reached} == {0}
    assert {row["steps"] for row in missed} == {None}
    steps = [[entry["step"] for entry in row["history"]] for row in missed]
    # The Trainer's defaults: three epochs of 16 rows in batches of 8.
    assert steps == [[0, 2, 4], [0, 2, 4], [0, 2, 4], [0, 2, 4, 6], [0, 2, 4]]
    assert "1 of 1 not in" in time_to_accuracy.table(document)
    before = (tmp_path / "results" / "time_to_accuracy.md").read_text()
    time_to_accuracy.main([*command, "--target", "1.1"])
    assert (tmp_path / "results" / "time_to_accuracy.md").read_text().split("\n\n")[0] == before.split("\n\n")[0]


def test_options_of_quick_and_of_the_whole_run() -> None:
    quick = training_step.parse(["--quick", "--device", "cpu"])
    assert (quick.prompt_lengths, quick.batch_sizes, quick.rounds, quick.name) == ([20], [16], 5, "training_step_quick")
    whole: argparse.Namespace = training_step.parse(["--device", "cuda"])
    assert (whole.prompt_lengths, whole.batch_sizes, whole.text_lengths) == ([8, 20, 100], [16, 64], [32, 256, 1024])
    assert whole.base == ["smollm2-135m", "llama-1b", "llama-8b"]
    assert training_step.parse(["--device", "cpu"]).text_lengths is None
    assert whole.name == "training_step_cuda"


def test_prompts_an_hour_of_both_sides(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base", folder, "--dtype", "float32", "--tasks", "2", "--steps", "2", "--rounds", "1", "--tokens", "4"]
    train_many.main(words)
    found = capsys.readouterr().out
    assert found.count("warm-up, not counted") == 2
    assert found.count("prompts an hour (median of 1)") == 2
    assert "side by side makes" in found


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts them")
def test_bytes_are_those_that_were_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        before = scaling.bytes_sent()
        one.sendall(b"x" * 46_080)
        received = 0
        while received < 46_080:
            received += len(other.recv(65_536))
        deadline = time.monotonic() + 5
        while scaling.bytes_sent() - before < 46_080 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert scaling.bytes_sent() - before == 46_080
        other.close()


def test_the_model_of_many_machines() -> None:
    assert scaling.predicted(2, 1e9, 1e9, 0.0) == pytest.approx(1.0)  # each half goes there and comes back
    assert scaling.predicted(1000, 1e9, 1e9, 0.0) == pytest.approx(1.998)
    assert scaling.predicted(1024, 0, 1e9, 1e-4) == pytest.approx(20e-4)  # little goes by the tree

    def run(processes: int, gathered: int = 0, times: dict[str, float] | None = None) -> dict[str, object]:
        memory = {"imported": 1 << 20, "loaded": 2 << 20, "trained": 3 << 20}
        figures = {"processes": processes, "spread": bool(gathered), "gathered": gathered, "all_reduce": times or {}}
        return figures | {"step_seconds": 2.0, "bytes_a_step": 5e4, "peak_memory": memory}

    # Latency 1 ms and a gigabyte a second, between two: each process sends as much as is reduced.
    times = {str(size): 2e-3 + size / 1e9 for size in (4096, 46_080, 1 << 25)}
    document: dict[str, object] = {
        "rows": 4,
        "machine": {"cores": 2, "processor": "none", "threads": 1},
        "load_average_at_start": [0.5],
        "command": "python -m benchmarks.scaling",
        "versions": {},
        "time": "2026-01-01T00:00:00Z",
        "runs": [run(1), run(2, times=times), run(2, gathered=1_000_000)],
        "methods": {name: {"bytes": size, "step_seconds": 2.0} for name, size in (("prompt", 46_080), ("full", 5e8))},
    }
    scaling.model(document)
    alone, two, spread = (one["model"] for one in document["runs"])
    assert (alone["bytes"], two["bytes"], spread["bytes"]) == (0, 46_080, 1_046_080)
    assert two["latency"] == pytest.approx(1e-3)
    assert two["bandwidth"] == pytest.approx(1e9)
    assert two["all_reduce"]["46080"] == pytest.approx(times["46080"])
    found = {(one["method"], one["gbit"], one["faster"]): one["efficiency"] for one in document["machines"]}
    assert found["prompt", 1, 1] > 0.99 > found["full", 25, 1] > found["full", 1, 1]
    assert found["full", 1, 1] == pytest.approx(2 / (2 + 0.0999 + 1.998 * 5e8 / 1.25e8), rel=1e-3)
    assert document["prompts_a_day"]["measured step"] == pytest.approx(86_400 / (240 * 2))
    page = scaling.table(document)
    assert "| 2, base spread | 50,000 | 1,046,080 |" in page
    assert "| 2 | 46,080 | 2.05 | 2.05 |" in page
