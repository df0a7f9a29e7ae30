"""A base without its weights: the fingerprint from the files is the loaded model's."""

from __future__ import annotations

import json
import sys
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from softprompt.bases import load as load_module
from softprompt.bases.load import load_base, load_outline
from softprompt.errors import SoftPromptError
from softprompt.serving.vllm import VllmEngine
from tests.bases.test_load import write_gguf
from tests.conftest import make_tokenizer
from tests.models.families import CONFIGS, make_model

WEIGHTS = "model.safetensors"
IDS = torch.tensor([5, 0, 60, 5])


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Any) -> None:
    """Save the weights anew as `change` makes them of a dict."""
    weights = {name: weight.clone() for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(change(weights), folder / WEIGHTS, metadata={"format": "pt"})


def check(folder: Path) -> None:
    """Nothing was loaded, and nothing differs from what loading gives."""
    loaded, outline = load_base(folder, dtype="float32"), load_outline(folder)
    assert outline.samples is not None
    on_cpu = {name for name, weight in outline.model.named_parameters() if weight.device.type != "meta"}
    assert len(on_cpu) == 1  # the word embeddings
    assert outline.identity == loaded.identity
    torch.testing.assert_close(outline.embed(IDS), loaded.embed(IDS), rtol=0.01, atol=0)
    assert (outline.max_positions, outline.end_ids) == (loaded.max_positions, loaded.end_ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_fingerprint_from_files_is_the_loaded_models(family: str, dtype: str, tmp_path: Path) -> None:
    """Among the families: tied embeddings (GPT-2), scaled ones (Gemma), experts that the class fuses (GPT-OSS)."""
    check(save(make_model(family, getattr(torch, dtype)), tmp_path))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_a_checkpoint_in_parts(family: str, tmp_path: Path) -> None:
    folder = save(make_model(family), tmp_path, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    check(folder)


def test_of_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    """As Mixtral's are, whose class holds them all in one weight."""
    size = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 12}
    torch.manual_seed(0)
    folder = save(tf.MixtralForCausalLM(tf.MixtralConfig(**size, **heads)), tmp_path)
    assert any("experts.11." in name for name in load_file(folder / WEIGHTS))
    check(folder)


def test_of_weights_under_the_names_of_the_model_without_a_head(tmp_path: Path) -> None:
    folder = save(make_model("gpt2"), tmp_path)
    rewrite(folder, lambda all_: {name.removeprefix("transformer."): weight for name, weight in all_.items()})
    assert "wte.weight" in load_file(folder / WEIGHTS)
    check(folder)


@pytest.mark.parametrize("equal", [True, False])
def test_of_tied_weights_that_are_stored_twice(equal: bool, tmp_path: Path) -> None:
    """Transformers ties them where they are equal, and else leaves them apart."""
    folder = save(make_model("gpt2"), tmp_path)
    rewrite(folder, lambda all_: all_ | {"lm_head.weight": all_["transformer.wte.weight"] * (1 if equal else -1)})
    check(folder)


def test_of_tied_weights_that_are_stored_under_the_other_name(tmp_path: Path) -> None:
    folder = save(make_model("gpt2"), tmp_path)
    rewrite(folder, lambda all_: all_ | {"lm_head.weight": all_.pop("transformer.wte.weight")})
    check(folder)


def test_where_the_files_are_not_sure_the_weights_are_loaded_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(make_model("llama"), tmp_path / "model")
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    gguf = write_gguf(tmp_path / "tiny.gguf", tf.LlamaForCausalLM(llama_config()), make_tokenizer())
    for base, why in ((folder, "unusual names"), (gguf, "a GGUF file's weights")):
        caplog.clear()
        outline = load_outline(base)
        assert outline.samples is None
        assert outline.identity == load_base(base, dtype="bfloat16").identity
        (said,) = caplog.messages
        assert "was loaded only for its identity" in said
        assert why in said


def llama_config() -> tf.LlamaConfig:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return tf.LlamaConfig(vocab_size=258, hidden_size=16, intermediate_size=24, num_hidden_layers=1, **heads)


def test_what_cannot_be_loaded_is_refused_as_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(make_model("llama"), tmp_path)
    rewrite(folder, lambda all_: {name: weight for name, weight in all_.items() if "q_proj" not in name})
    for base, says in ((folder, "lacks weights"), (tmp_path / "none", "no local folder")):
        with pytest.raises(SoftPromptError, match=says):
            load_outline(base)
    assert caplog.messages == []


def test_the_vllm_engine_loads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose constructor is all that is tried here, beside a vLLM that has only the names of its arguments."""
    flags = make_dataclass("AsyncEngineArgs", ["model", "dtype", "block_size"])
    stand_in: Any = ModuleType("vllm")
    stand_in.AsyncEngineArgs = flags
    platforms: Any = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(device_type="cpu")
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    folder = save(make_model("gemma"), tmp_path)
    expected = load_base(folder, dtype="float32")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(load_module, "load_base", refuse)
    engine = VllmEngine(folder)
    assert engine.base.identity == expected.identity
    assert {weight.device.type for weight in engine.base.model.parameters()} == {"meta"}
    assert torch.equal(engine._probe_rows, expected.embed(engine._probe_ids))
