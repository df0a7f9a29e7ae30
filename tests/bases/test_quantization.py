"""Bases held in 8 or 4 bits: their gradients, their identity, and what is refused. On the CPU."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers import PreTrainedModel

import softprompt as sp
from softprompt.bases import identity, quantization
from softprompt.bases.load import load_base, load_outline
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.models.family import Batch, family_of, hidden_states
from softprompt.models.probe import find_route, objection, probe
from tests.bases.test_load import write_gguf
from tests.conftest import make_tokenizer
from tests.models.kinds_on_a_device import numbers

bnb = pytest.importorskip("bitsandbytes.functional", reason="`make test-quantization` runs it")
pytest.importorskip("torchao", reason="`make test-quantization` runs it")

KINDS = list(quantization.KINDS)
WIDTH = 64
_ids = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_size = {**_ids, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.1}
_usual = {**_size, "intermediate_size": 2 * WIDTH, "max_position_embeddings": 256}
MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**_usual, num_key_value_heads=1)),
    "t5": (
        tf.T5ForConditionalGeneration,
        tf.T5Config(**_ids, d_model=WIDTH, d_kv=32, d_ff=128, num_layers=2, num_heads=2, decoder_start_token_id=0),
    ),
    "bert": (tf.BertForMaskedLM, tf.BertConfig(**_usual)),
}


def save(folder: Path, family: str = "llama") -> Path:
    torch.manual_seed(0)
    kind, config = MODELS[family]
    kind(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save(tmp_path_factory.mktemp(family), family) for family in MODELS}


@pytest.fixture
def folder(folders: dict[str, Path]) -> Path:
    return folders["llama"]


def dtype_for(kind: str) -> str:
    return "bfloat16" if kind == "torchao-int4" else "float32"


def dequantised(layer: Any) -> Tensor:
    """A layer's weights, by its library's own means or by what its kernel makes of the identity."""
    if type(layer).__name__ == "Linear8bitLt":
        state = layer.state if layer.state.CB is not None else layer.weight
        return state.CB.float() * state.SCB[:, None] / 127
    if type(layer).__name__ == "Linear4bit":
        return bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if type(layer) is nn.Linear:
        return layer.weight.dequantize()
    return quantization.dequantised(layer.weight, torch.zeros(1, dtype=torch.bfloat16)).T


def twin(base: sp.Base, folder: Path, dtype: str) -> PreTrainedModel:
    """The same model with the dequantised weights, held in full."""
    model = load_base(folder, dtype=dtype).model
    count = 0
    for name, layer in base.model.named_modules():
        if isinstance(layer, nn.Linear) and quantization._is_quantised(layer):
            model.get_submodule(name).weight.data.copy_(dequantised(layer))
            count += 1
    assert count
    return model


def gradient(model: PreTrainedModel, route: str, prompts: list[Tensor], batch: Batch) -> Tensor:
    """Of the prompts, `[P, H]`, from a loss that looks at all states."""
    leaves = [prompt.clone().requires_grad_() for prompt in prompts]
    states = hidden_states(route, model, leaves, batch).float()
    loss = (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum()
    return torch.cat(torch.autograd.grad(loss, leaves))


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize(
    ("kind", "family", "dtype"),
    [
        *((kind, family, dtype_for(kind)) for kind in KINDS for family in MODELS),
        *((kind, "llama", "bfloat16") for kind in ("bnb-4bit", "bnb-8bit", "torchao-int8")),
    ],
)
def test_the_prompts_gradient_is_that_through_the_dequantised_weights(
    kind: str, family: str, dtype: str, folders: dict[str, Path]
) -> None:
    """By the fastest route and the plainest, after a pass without gradient: bitsandbytes packs weights anew in one."""
    base = load_base(folders[family], dtype=dtype, quantization=kind)
    prompts, batch = probe(base.model)
    exact, plain = twin(base, folders[family], "float32"), twin(base, folders[family], dtype)
    routes = family_of(base.model).routes
    for route in {find_route(base.model).name, routes[-1]}:
        assert not any(objection(model, route) for model in (exact, plain))
        wanted, usual, found = (gradient(model, route, prompts, batch) for model in (exact, plain, base.model))
        assert distance(found, wanted) < 1.5 * distance(usual, wanted) + 1e-5, route


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_that_of_the_dequantised_weights(kind: str, family: str, folders: dict[str, Path]) -> None:
    """Loss, gradients and answers by heads, tags, spans and embeddings."""
    dtype = dtype_for(kind)
    base = load_base(folders[family], dtype=dtype, quantization=kind)
    exact, plain = (sp.Base(twin(base, folders[family], of), base.tokenizer, "twin") for of in ("float32", dtype))
    for answer in ("head", "tags", "span", "embedding"):
        wanted, usual, found = (
            torch.cat([one.flatten().float() for one in numbers(a, answer)]) for a in (exact, plain, base)
        )
        times = 2.0 if dtype == "bfloat16" else 1.5  # what a product is rounded to on its way is the kernel's affair
        assert distance(found, wanted) < times * distance(usual, wanted) + 1e-4, answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_packed_route_is_taken(kind: str, folder: Path) -> None:
    assert find_route(load_base(folder, dtype=dtype_for(kind), quantization=kind).model).name == "packed"


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_is_known_however_it_is_held(
    kind: str, family: str, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    identity._tell_quantization.cache_clear()
    full = load_base(folders[family], dtype="float32")
    held = load_base(folders[family], dtype=dtype_for(kind), quantization=kind)
    assert held.identity.quantization == held.quantization == kind
    assert held.identity.model_copy(update={"quantization": None}) == full.identity
    assert held.weight_bytes < full.weight_bytes
    with caplog.at_level(logging.INFO, "softprompt"):
        for _ in range(2):
            full.identity.check_same(held.identity)
    assert [line for line in caplog.messages if "not quantised and meets it" in line and kind in line] == [
        f"a prompt was made for base {full.name!r} not quantised and meets it {kind}: figures may differ"
    ]


def test_a_base_whose_files_are_not_sure_is_read_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = load_base(folder, dtype="float32")

    def unsure(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("rules changed")

    monkeypatch.setattr("softprompt.bases.load.read_samples", unsure)
    held = load_base(folder, dtype="float32", quantization="torchao-int8")
    assert held.identity.fingerprint == full.identity.fingerprint
    assert "is read twice, first for its identity: RuntimeError: rules changed" in caplog.text


@pytest.mark.parametrize("kind", ["torchao-int8", "bnb-8bit", "bnb-4bit"])
def test_a_checkpoint_that_is_stored_quantised_stays_so(kind: str, folder: Path, tmp_path: Path) -> None:
    full, held = (load_base(folder, dtype="float32", quantization=one) for one in (None, kind))
    held.model.save_pretrained(tmp_path)
    held.tokenizer.save_pretrained(tmp_path)
    stored = load_base(tmp_path, dtype="float32")
    assert (stored.quantization, stored.weight_bytes) == (kind, held.weight_bytes)
    assert stored.identity == load_base(tmp_path, dtype="float32", quantization=kind).identity
    ids = torch.tensor([[5, 60, 7]])
    torch.testing.assert_close(stored.model(ids).logits, held.model(ids).logits, rtol=0.01, atol=0.01)
    with pytest.raises(WrongBaseError):
        full.identity.check_same(stored.identity)
    other = "bnb-4bit" if kind == "torchao-int8" else "torchao-int8"
    with pytest.raises(SoftPromptError, match=f"is stored as {kind}: it can't be held as {other}$"):
        load_base(tmp_path, dtype="float32", quantization=other)
    outline = load_outline(tmp_path)
    assert outline.identity == stored.identity
    assert {w.device.type for n, w in outline.model.named_parameters() if "embed" not in n} == {"meta"}
    torch.testing.assert_close(outline.embed(ids), stored.embed(ids))


def test_a_checkpoint_of_a_library_that_is_not_here(folder: Path, tmp_path: Path) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    tf.LlamaForCausalLM(model.config).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SoftPromptError, match=r"cannot be loaded: ImportError: .*GPTQ") as caught:
        load_base(tmp_path)
    assert "\n" not in str(caught.value)
    assert load_outline(tmp_path).identity.quantization == "gptq-4bit"  # which an engine that has it needs


@pytest.mark.parametrize("kind", KINDS)
def test_a_library_that_is_not_installed(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = quantization.KINDS[kind].library
    found = util.find_spec
    monkeypatch.setattr(quantization, "find_spec", lambda name: None if name == library else found(name))
    with pytest.raises(SoftPromptError) as caught:
        load_base(folder, quantization=kind)
    assert str(caught.value) == (
        f'quantization {kind} needs {library}, which is not installed: pip install "softprompt[{library}]"'
    )


@pytest.mark.parametrize(
    ("kind", "dtype", "device", "says"),
    [
        ("torchao-int4", torch.float32, "cpu", "its kernels are for bfloat16: choose that dtype"),
        ("torchao-int4", torch.bfloat16, "mps", "it has no kernels for mps"),
        ("bnb-4bit", torch.bfloat16, "meta", "does not run on meta"),
        ("bnb-8bit", torch.float64, "cpu", "it has no kernels for float64"),
        ("int3", torch.float32, "cpu", "is not one: use bnb-4bit, bnb-8bit, torchao-int4, torchao-int8"),
    ],
)
def test_what_this_machine_or_dtype_can_not(kind: str, dtype: torch.dtype, device: str, says: str) -> None:
    with pytest.raises(SoftPromptError, match=says):
        quantization.check(kind, dtype, torch.device(device))


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(SoftPromptError, match=r"need compute capability 8\.0, and T4 has less"):
        quantization.check("torchao-int4", torch.bfloat16, torch.device("cuda"))


def test_widths_that_no_group_divides(tmp_path: Path) -> None:
    config = tf.LlamaConfig(**{**_usual, "hidden_size": 48, "intermediate_size": 96})
    tf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SoftPromptError, match="has no weights that torchao-int4 can hold"):
        load_base(tmp_path, dtype="bfloat16", quantization="torchao-int4")


def test_some_widths_that_no_group_divides_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tf.LlamaForCausalLM(tf.LlamaConfig(**{**_usual, "intermediate_size": 96})).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "softprompt"):
        load_base(tmp_path, dtype="bfloat16", quantization="torchao-int4")
    assert "is held as torchao-int4: 12 of its linear layers are; 2 are not, whose widths it can't" in caplog.text


def test_a_gguf_file_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load_base(folder, dtype="float32")
    file = write_gguf(tmp_path / "tiny.gguf", base.model, make_tokenizer())
    with pytest.raises(SoftPromptError, match="dequantised as it is read: save it as a folder"):
        load_base(file, dtype="float32", quantization="torchao-int8")


def test_the_libraries_say_nothing_when_they_are_imported() -> None:
    code = "import softprompt, torchao.quantization, bitsandbytes, transformers.modeling_utils, peft"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
