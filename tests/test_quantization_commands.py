"""`--quantization` and `--device-map` on the command line, and what a prompt's card says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from softprompt import SoftPrompt
from softprompt.comparison.methods.full import FullFineTuning
from softprompt.comparison.methods.lora import Lora
from tests.conftest import make_tokenizer
from tests.test_cli import make_project, printed, refused, run

for _library in ("bitsandbytes", "torchao"):
    pytest.importorskip(_library, reason="`make test-quantization` runs it")

INT8, BNB4 = (["--set", f"recipe.quantization={kind}"] for kind in ("torchao-int8", "bnb-4bit"))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=258, eos_token_id=0, pad_token_id=1)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, base_folder)


def test_a_prompt_says_how_its_base_was_held(project: Path) -> None:
    found = printed("train", "task.yaml", *INT8)
    card = SoftPrompt.load(found["prompt"]).card
    assert card.base is not None
    assert (card.base.quantization, card.recipe["quantization"]) == ("torchao-int8", "torchao-int8")
    asked = ["evaluate", found["prompt"], "test.csv"]
    as_trained, plain = run(*asked), run(*asked, "--quantization", "none")
    assert "is held as torchao-int8: 14 of its linear layers are" in as_trained.stderr
    assert "meets it" not in as_trained.stderr
    assert "torchao-int8 and meets it not quantised: figures may differ" in plain.stderr
    assert printed(*asked)["accuracy"] == found["test"]["accuracy"]
    assert "is not one: use bnb-4bit" in refused("predict", found["prompt"], "fine", "--quantization", "int3")
    printed("predict", found["prompt"], "fine", "--quantization", "none", "--device-map", "auto")
    again = refused("train", "task.yaml", *BNB4, "--resume")
    assert "had another base (quantization: 'torchao-int8', now 'bnb-4bit')" in again


def test_a_record_of_before_goes_on(project: Path) -> None:
    printed("train", "task.yaml")
    record = Path("runs/mood/run.json")
    content = json.loads(record.read_text("utf-8"))
    del content["base"]["quantization"], content["recipe"]["quantization"]
    record.write_text(json.dumps(content), "utf-8")
    printed("train", "task.yaml", "--resume")


def test_a_comparison_over_a_quantised_base(project: Path) -> None:
    methods = ["--methods", "prompt,lora,full", "--output", "cmp"]
    done = run("compare", "task.yaml", *methods, *INT8)
    assert done.exit_code == 0, done.output
    assert "Full fine-tuning: full fine-tuning needs a base that is not quantised, which torchao-int8 is" in done.stdout
    assert Lora.title in done.stdout
    assert FullFineTuning.title in done.stdout


def test_vllm_has_its_own(project: Path) -> None:
    done = run("serve", "--engine", "vllm", "--quantization", "bnb-4bit")
    assert done.exit_code == 2
    assert "--quantization" in done.stderr
