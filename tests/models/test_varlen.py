"""The route of a GPU in bfloat16 and float16, its index work proven on the CPU: by a stand-in of the kernel's contract.

`test_cuda.py` runs the kernel itself.
"""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from hypothesis import given, settings

from softprompt.models import attention
from softprompt.models import prompted as prompted_module
from softprompt.models.attention import objection_to_device, varlen_kernel
from softprompt.models.packed import build_layout
from softprompt.models.probe import probe
from softprompt.models.scoring import score
from softprompt.models.state import _objection_to_keeping
from tests.models.based import with_prompts
from tests.models.batches import Example, distance, examples, make_example
from tests.models.families import make_model
from tests.models.varlen import Varlen, varlen

# Heads as wide as the kernel takes them; of grouped ones two to a key.
_WIDE = {"head_dim": 8}
FAMILIES = {
    "llama": _WIDE,
    "qwen2": _WIDE,
    "qwen3": {},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {},
    "gemma": {},
    "phi": {},
    "granite": _WIDE,
    "mistral": _WIDE | {"sliding_window": 64},
}
BATCHES = [
    make_example([7, 1, 12, 3], [5], seed=1),
    make_example([1, 1, 1], [1], label_share=1.0, seed=2),
    make_example([6, 1, 9, 4, 1, 11], [3, 8, 1], [2, 0, 1, 1, 0, 2], ["left", "right"] * 3, seed=3, beginning=2),
    make_example([20], [9], seed=4),
]


def check(kernel: Varlen, family: str, example: Example) -> None:
    model = make_model(family, **FAMILIES[family])
    prompted = with_prompts(model, example.parameters(torch.float32), route="packed")
    kernel.calls = 0
    output = prompted(**example.batch, return_logits=True)
    grads = torch.autograd.grad(output.loss, list(prompted.parameters()), materialize_grads=True)
    assert kernel.calls == model.config.num_hidden_layers
    expected = example.reference(model, torch.float32)
    assert distance([output.loss], [expected.loss]) < 1e-5
    assert distance([output.logits], [expected.logits]) < 1e-5
    assert distance(grads, expected.grads) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_one_kernel_a_layer_equals_the_concatenation(family):
    with varlen() as kernel:
        for example in BATCHES:
            check(kernel, family, example)


@given(examples())
@settings(max_examples=25, deadline=None)
def test_any_batch_equals_the_concatenation(example):
    with varlen() as kernel:
        check(kernel, "llama", example)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma", "mistral"])
def test_in_bfloat16_it_is_as_near_to_float64_as_the_concatenation(family):
    model = make_model(family, torch.bfloat16, **FAMILIES[family])
    wide = make_model(family, torch.bfloat16, **FAMILIES[family]).double()
    found = []
    with varlen() as kernel:
        for seed in range(6):
            example = make_example([7, 1, 12, 3, 9, 14], [5, 8], [0, 1, 1, 0, 1, 1], seed=seed)
            right = example.reference(wide)
            prompted = with_prompts(model, example.parameters(torch.float32), route="packed")
            output = prompted(**example.batch, return_logits=True)
            grads = torch.autograd.grad(output.loss, list(prompted.parameters()))
            plainly = _concatenated(model, example)
            found.append(
                [
                    distance([output.logits], [right.logits]),
                    distance([plainly[0]], [right.logits]),
                    distance(grads, right.grads),
                    distance(plainly[1], right.grads),
                ]
            )
        assert kernel.calls >= 6 * model.config.num_hidden_layers
    ours, theirs, our_gradient, their_gradient = torch.tensor(found).mean(0).tolist()
    assert ours <= 1.5 * theirs
    assert our_gradient <= 1.5 * their_gradient


def _concatenated(model, example):
    """Logits and gradients of the concatenation in the model's own dtype and attention."""
    prompted = with_prompts(model, example.parameters(torch.float32), route="concatenated")
    output = prompted(**example.batch, return_logits=True)
    return output.logits, torch.autograd.grad(output.loss, list(prompted.parameters()))


@pytest.mark.parametrize(
    ("family", "changes", "layers", "said"),
    [
        ("gemma2", {}, 0, "soft-capped at 2"),
        ("gemma3", {}, 1, "longer than its sliding window of 4"),
        ("mistral", _WIDE, 0, "longer than its sliding window of 4"),
        ("llama", {}, 0, "4 and 4 wide, not equal multiples of 8"),
    ],
)
def test_what_the_kernel_does_not_compute_falls_back_and_says_so_once(family, changes, layers, said, caplog):
    caplog.set_level(logging.WARNING, attention.__name__)
    model = make_model(family, **changes)
    example = BATCHES[2]
    with varlen() as kernel:
        prompted = with_prompts(model, example.parameters(torch.float32), route="packed")
        kernel.calls = 0
        output = prompted(**example.batch)
        assert kernel.calls == layers
        prompted(**example.batch)
    assert distance([output.loss], [example.reference(model, torch.float32).loss]) < 1e-5
    lines = [record.getMessage() for record in caplog.records if "varlen_attn" in record.getMessage()]
    assert len(lines) == 1
    assert said in lines[0]


def test_more_rows_than_the_kernel_counts_fall_back(monkeypatch, caplog):
    model = make_model("llama", head_dim=8)
    with varlen() as kernel:
        prompted = with_prompts(model, BATCHES[0].parameters(torch.float32), route="packed")
        kernel.calls = 0
        monkeypatch.setattr(attention, "_MOST_PLACES", 128 * 6 * 4 * 64)  # a buffer of its four heads, rounded up
        prompted(**BATCHES[0].batch)
    assert kernel.calls == 0
    assert "lower max_tokens or the batch size" in caplog.text


def test_a_text_among_many_is_counted_with_the_kernels_own_padding():
    # Upstream's case: 8,300 texts of one token, 16 heads of 128 (https://github.com/Dao-AILab/flash-attention/pull/2260)
    query = torch.empty(1, 16, 8300, 128, device="meta")
    assert attention._objection_to_row(build_layout([0], [0] * 8300, [1] * 8300), query, query, query, (None, None))
    query = query[:, :, :4000]
    layout = build_layout([0], [0] * 4000, [1] * 4000)
    assert not attention._objection_to_row(layout, query, query, query, (None, None))


def test_the_pool_takes_it_too():
    model = make_model("llama", head_dim=8)
    with varlen() as kernel:
        prompted = with_prompts(model, [])
        kernel.calls = 0
        assert _objection_to_keeping(model) == ""
        assert kernel.calls == 2 * model.config.num_hidden_layers
        texts = [[5, 6, 7], [8]]
        by_tree = score(prompted, texts, [[3], [4, 9]])  # a tree branches: no kernel for it
    torch.testing.assert_close(by_tree, score(with_prompts(model, []), texts, [[3], [4, 9]]))


def test_gpus_and_releases_without_it_say_so(monkeypatch, caplog):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for clear in (objection_to_device, attention._say):
        clear.cache_clear()
    try:
        assert objection_to_device(torch.device("cpu"), torch.bfloat16)
        assert not caplog.records  # a CPU has its own kernels
        assert "Tesla T4 is too old" in objection_to_device(cuda, torch.float16)
        assert "Tesla T4 is too old for it: compute capability 7.5, not 8.0" in caplog.records[-1].getMessage()
        assert "float32 is not" in objection_to_device(cuda, torch.float32)
        monkeypatch.setattr(attention, "varlen_kernel", lambda: None)
        assert "none with grouped heads" in objection_to_device(cuda, torch.bfloat16)
        assert len(caplog.records) == 3
    finally:
        objection_to_device.cache_clear()


@pytest.mark.skipif(varlen_kernel() is None, reason="this PyTorch has no varlen_attn with grouped heads")
def test_the_stand_in_takes_what_the_kernel_takes():
    theirs, ours = inspect.signature(varlen_kernel()).parameters, inspect.signature(Varlen()).parameters
    for name, parameter in ours.items():
        assert (theirs[name].kind, theirs[name].default) == (parameter.kind, parameter.default)
    assert list(theirs)[:7] == list(ours)[:7]
    # Shapes, dtypes and the way back by the kernel's own outline.
    layout = build_layout([3, 5], [0, 1, 1], [4, 1, 6])
    layout.device = torch.device("meta")
    query = torch.empty(19, 4, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    key = torch.empty(19, 2, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    answer = attention._varlen_attention(query, key, key, layout.sequences, 0.25)
    assert answer.shape == query.shape
    grads = torch.autograd.grad(answer.sum(), [query, key])
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, torch.bfloat16) for t in (query, key)]


def test_the_probe_decides_for_it_as_for_any_other():
    model = make_model("llama", head_dim=8)
    with varlen() as kernel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prompted_module, "objection_to_device", attention.objection_to_device)
            assert with_prompts(model, []).kernel == "packed/varlen"
        assert kernel.calls
    assert len(probe(model)[0]) == 2
