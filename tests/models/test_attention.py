"""The kernels against attention in plain matrix products; what `attach` does to a model and what it leaves alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softprompt.models import attention
from softprompt.models.attention import CannotPackError, attach, choose_kernel, detach, packed_attention
from softprompt.models.packed import build_layout
from tests.models.families import VOCABULARY, make_model
from tests.models.test_packed import plain, rows


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """`[heads, N, d]` by a dense mask `[N, N]`, each key head repeated for its queries."""
    group = len(query) // len(key)
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    scores = query @ key.transpose(1, 2) * scaling
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@given(
    row=rows().filter(lambda row: sum(row[0]) + sum(row[2]) > 0),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1), (2, 2)]),
    sizes=st.sampled_from([(4, 4), (4, 6), (6, 2)]),
    window=st.sampled_from([None, 1, 3]),
    softcap=st.sampled_from([None, 0.5]),
    scaling=st.sampled_from([None, 0.7]),
    kernel=st.sampled_from(["matmul", "sdpa"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_kernels_equal_plain_attention(row, heads, sizes, window, softcap, scaling, kernel, seed):
    positions, sight = plain(*row)
    places = len(positions)
    seen = torch.zeros(places, places, dtype=torch.bool)
    for place, keys in enumerate(sight):
        for other in keys:
            seen[place, other] = window is None or positions[place] - positions[other] < window
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads[0], places, sizes[0]), (heads[1], places, sizes[0]), (heads[1], places, sizes[1])]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    weight = torch.randn(heads[0], places, sizes[1], generator=generator, dtype=torch.float64)

    expected = plain_attention(*inputs, seen, sizes[0] ** -0.5 if scaling is None else scaling, softcap)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    layout = build_layout(*row)
    layout.kernel = kernel
    output, _ = packed_attention(
        layer(sliding_window=window),
        *(t[None] for t in inputs),
        None,
        layout=layout,
        scaling=scaling,
        sliding_window=window,
        softcap=softcap,
    )
    output = output[0].transpose(0, 1)
    grads = torch.autograd.grad((output * weight).sum(), inputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    for grad, right in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("row", "window", "causal"),
    [
        (([9, 9], [0, 1, 1], [40, 17, 30], None), None, {True}),
        # What stands before two texts differs in length.
        (([5, 9], [0, 1, 1], [40, 17, 30], None), None, {True, False}),
        (([30], [0], [7], None), None, {False}),  # more before the text than in it
        (([5], [0], [40], None), 8, {False}),
    ],
)
def test_long_texts_need_no_mask(monkeypatch, dtype, row, window, causal):
    used = []
    inner = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, is_causal=False, **more):
        used.append(is_causal)
        return inner(*args, is_causal=is_causal, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    count = sum(row[0]) + sum(row[2])
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(heads, count, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    found = {}
    for kernel in ("matmul", "sdpa"):
        layout = build_layout(*row)
        layout.kernel = kernel
        given = (t[None] for t in inputs)
        output, _ = packed_attention(layer(sliding_window=window), *given, None, layout=layout, sliding_window=window)
        found[kernel] = [output, *torch.autograd.grad(output.float().square().sum(), inputs)]
    assert set(used[1:]) == causal  # the first are the prompts
    allowed = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for ours, theirs in zip(found["sdpa"], found["matmul"], strict=True):
        torch.testing.assert_close(ours, theirs, **allowed)


def layer(**config: object) -> torch.nn.Module:
    """An attention layer as far as `packed_attention` looks at one."""
    module = torch.nn.Module()
    module.config, module.layer_idx = SimpleNamespace(**config), 0
    return module


def call(module: torch.nn.Module, **options: object) -> tuple[Tensor, None]:
    states = torch.ones(1, 2, 5, 4)
    return packed_attention(module, states, states, states, None, layout=build_layout([2], [0], [3]), **options)


def test_the_matmul_kernel_refuses_a_second_derivative():
    layout = build_layout([2], [0], [3])
    layout.kernel = "matmul"
    states = torch.randn(1, 2, 5, 4, requires_grad=True)
    output, _ = packed_attention(layer(), states, states, states, None, layout=layout)
    (grad,) = torch.autograd.grad(output.square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_kernel_is_chosen_by_device_and_size():
    assert choose_kernel(torch.device("cpu"), 1) == "matmul"
    assert choose_kernel(torch.device("cpu"), attention._MOST_SCORES + 1) == "sdpa"
    assert choose_kernel(torch.device("cuda"), 1) == "sdpa"


@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
def test_the_layout_or_the_choice_names_the_kernel(monkeypatch, kernel):
    used = []
    monkeypatch.setattr(
        attention, "_sdpa_attention", lambda *args, inner=attention._sdpa_attention: used.append("sdpa") or inner(*args)
    )
    monkeypatch.setattr(attention, "choose_kernel", lambda device, scores: kernel)
    by_choice, _ = call(layer())
    assert used == (["sdpa"] if kernel == "sdpa" else [])
    layout = build_layout([2], [0], [3])
    layout.kernel = "matmul"
    states = torch.ones(1, 2, 5, 4)
    by_name, _ = packed_attention(layer(), states, states, states, None, layout=layout)
    assert used == (["sdpa"] if kernel == "sdpa" else [])
    torch.testing.assert_close(by_choice, by_name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"s_aux": torch.ones(2)}, "s_aux"),
        ({"position_bias": torch.ones(1), "s_aux": torch.ones(2)}, "position_bias, s_aux"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_a_kernel_does_not_know_is_refused(options, reason):
    with pytest.raises(CannotPackError, match=reason):
        call(layer(), **options)


def test_arguments_that_change_no_number_are_taken():
    call(layer(), position_ids=torch.arange(5)[None], use_cache=False, s_aux=None, dropout=0.0)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"sliding_window": 8}, None),
        ({"sliding_window": None}, 8),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, 8),
        ({"sliding_window": None, "layer_types": ["chunked_attention"]}, None),
    ],
)
def test_a_window_that_the_layer_does_not_ask_for_is_refused(config, asked):
    with pytest.raises(CannotPackError, match="layer 0"):
        call(layer(**config), sliding_window=asked)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"sliding_window": 8}, 8),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"]}, 8),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, None),
        ({}, None),
    ],
)
def test_a_window_that_the_config_declares_is_taken(config, asked):
    call(layer(**config), sliding_window=asked)


@pytest.mark.parametrize(
    ("family", "inner"),
    [("gemma2", "eager"), *((family, inner) for family in ("llama", "gpt2", "opt") for inner in ("sdpa", "eager"))],
)
def test_calls_without_a_layout_stay_bit_for_bit(family, inner):
    model = make_model(family)
    model.set_attn_implementation(inner)
    ids = torch.randint(2, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0

    def answers() -> list[Tensor]:
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        logits = model(inputs_embeds=embedded, attention_mask=mask).logits
        (grad,) = torch.autograd.grad(logits[mask.bool()].square().sum(), embedded)
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=1)
        return [logits.detach(), grad, generated]

    before = answers()
    attach(model)
    assert model.config._attn_implementation == f"softprompt_{inner}"
    attached = answers()
    attach(model)
    assert model.config._attn_implementation == f"softprompt_{inner}"
    twice = answers()
    detach(model)
    assert model.config._attn_implementation == inner
    detach(model)
    for after in (attached, twice, answers()):
        assert all(map(torch.equal, after, before))


def test_a_model_with_attention_of_its_own_is_refused_and_left_alone():
    model = make_model("falcon")
    before = model.config._attn_implementation
    with pytest.raises(CannotPackError, match="attention interface"):
        attach(model)
    assert model.config._attn_implementation == before
