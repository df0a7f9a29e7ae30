"""Each family's route, its equality with the base's own forward, and the probe that chooses it."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel, Qwen2MoeConfig, Qwen2MoeForCausalLM, masking_utils

from softprompt.errors import SoftPromptError
from softprompt.models import routes
from softprompt.models.families import causal
from softprompt.models.families.causal import Causal
from softprompt.models.family import Batch, hidden_states, logits
from softprompt.models.packed import Tree
from softprompt.models.probe import Route, find_route, objection
from tests.models.based import with_prompts
from tests.models.batches import distance, make_example
from tests.models.families import (
    CONCATENATED,
    CONFIGS,
    CONTEXT,
    PACKED,
    SHARED_PREFIX,
    WINDOW,
    make_model,
    shared_model,
)
from tests.models.reference import keep_float64

# Prompts and texts longer than the window of those that have one, a text of one token, padding on both sides.
EXAMPLE = make_example([9, 1, 7], [6, 3], [0, 1, 0], ["left", "right", "right"], label_share=1.0)


def test_every_family_has_its_place():
    assert sorted([*PACKED, *SHARED_PREFIX, *CONCATENATED]) == sorted(CONFIGS)


@pytest.mark.parametrize("family", PACKED)
def test_families_that_are_packed(family):
    assert find_route(shared_model(family)) == Route("packed", "")


@pytest.mark.parametrize("family", SHARED_PREFIX)
def test_families_that_share_the_prefix(family):
    route = find_route(shared_model(family))
    assert route.name == "shared_prefix"
    assert route.reason.startswith("packed: ")
    assert ("s_aux" if family == "gpt_oss" else "attention interface") in route.reason


@pytest.mark.parametrize("family", CONCATENATED)
def test_families_that_are_concatenated(family):
    route = find_route(shared_model(family))
    assert route.name == "concatenated"
    assert "packed: CannotPackError: it carries a state" in route.reason
    assert "; shared_prefix: " in route.reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradient_equal_the_reference_on_every_exact_route(family, dtype):
    model = shared_model(family, dtype)
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    with keep_float64():
        expected = EXAMPLE.reference(model, dtype)
        for route in Causal.routes[Causal.routes.index(find_route(model).name) :]:
            prompts = EXAMPLE.parameters(dtype)
            answer = with_prompts(model, prompts, route=route)(**EXAMPLE.batch, return_logits=True)
            answer.loss.backward()
            assert distance([answer.loss], [expected.loss]) < limit
            assert distance([answer.logits], [expected.logits]) < limit
            assert distance([p.grad for p in prompts], expected.grads) < limit


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt_oss"])
def test_sliding_windows_cut(family):
    narrow, wide = make_model(family, torch.float64), make_model(family, torch.float64, sliding_window=CONTEXT)
    with keep_float64():
        answers = [with_prompts(m, EXAMPLE.parameters())(**EXAMPLE.batch, return_logits=True) for m in (narrow, wide)]
        expected = [EXAMPLE.reference(m) for m in (narrow, wide)]
    for answer, right in zip(answers, expected, strict=True):
        assert distance([answer.logits], [right.logits]) < 1e-9
    assert distance([answers[0].logits], [answers[1].logits]) > 1e-2


@pytest.mark.parametrize("route", Causal.routes)
def test_a_prompt_beyond_the_windows_of_all_layers_has_no_gradient(route):
    reach = 2 * (WINDOW - 1)  # of two layers
    # The one label stands at the text's end and is predicted from the place before it.
    example = make_example([reach + 2], [4], label_share=0.0)
    prompts = example.parameters()
    with_prompts(shared_model("mistral", torch.float64), prompts, route=route)(**example.batch).loss.backward()
    assert not prompts[0].grad.any()
    example = make_example([reach + 1], [4], label_share=0.0)
    prompts = example.parameters()
    with_prompts(shared_model("mistral", torch.float64), prompts, route=route)(**example.batch).loss.backward()
    assert not prompts[0].grad[:-1].any()
    assert prompts[0].grad[-1].any()


def test_a_window_that_only_the_mask_knows_is_not_packed():
    window = 12  # longer than the probe, as are the windows of real models
    config = Qwen2MoeConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        use_sliding_window=True,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"],
        experts_implementation="eager",
    )
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(config).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.2)
    assert "window" in find_route(model).reason
    example = make_example([20, 9], [8], label_share=1.0)
    with keep_float64():
        answer = with_prompts(model, example.parameters())(**example.batch, return_logits=True)
        assert distance([answer.logits], [example.reference(model).logits]) < 1e-9


def test_the_places_asked_for_come_in_any_order_and_more_than_once():
    model = shared_model("llama", torch.float64)
    rows, columns = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([2, -1, -1, 4, 2])
    batch = Batch(torch.arange(8), [5, 3], [1, 0], rows, columns)
    prompts = EXAMPLE.prompts
    by_route = [hidden_states(route, model, prompts, batch) for route in Causal.routes]
    for row, (text, k) in enumerate([(torch.arange(5), 1), (torch.arange(5, 8), 0)]):
        whole = torch.cat([prompts[k], model.get_input_embeddings()(text)])
        plain = model.model(inputs_embeds=whole[None]).last_hidden_state[0, len(prompts[k]) :]
        last = model.model(inputs_embeds=prompts[k][None]).last_hidden_state[0, -1:]
        plain = torch.cat([last, plain])
        for states in by_route:
            torch.testing.assert_close(states[rows == row], plain[columns[rows == row] + 1], rtol=1e-5, atol=1e-6)


def test_a_slower_route_is_told_once_and_with_the_reason(caplog):
    model = make_model("gpt_oss")
    with caplog.at_level(logging.WARNING, "softprompt"):
        for _ in range(2):
            with_prompts(model, EXAMPLE.parameters(torch.float32))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("softprompt")] == [
        "GptOssForCausalLM takes a slower route than packed (CannotPackError: its attention takes s_aux)"
    ]


@pytest.mark.parametrize("family", ["gpt_oss", "mamba", "bloom", "llama"])
def test_a_probe_leaves_the_model_as_it_was(family):
    model = make_model(family)
    ids = torch.arange(9)[None]
    implementation = model.config._attn_implementation
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(ids).logits
        find_route(model)
        after = model(ids).logits
    assert torch.equal(before, after)
    if family != "llama":
        assert model.config._attn_implementation == implementation
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_a_model_set_to_another_attention_later_stays_exact():
    model = make_model("llama", torch.float64)
    prompts = EXAMPLE.parameters()
    prompted = with_prompts(model, prompts)
    model.set_attn_implementation("eager")
    with keep_float64():
        answer = prompted(**EXAMPLE.batch)
        answer.loss.backward()
        expected = EXAMPLE.reference(model)
    assert distance([p.grad for p in prompts], expected.grads) < 1e-9


@pytest.mark.parametrize("family", PACKED)
def test_a_packed_row_has_no_mask_made_that_nobody_reads(family, monkeypatch):
    model = make_model(family)
    prompted = with_prompts(model, EXAMPLE.parameters(torch.float32))
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *args: pytest.fail("a mask was made"))
    assert prompted.route == "packed"
    assert prompted(**EXAMPLE.batch).loss.isfinite()


class SilentlyFailing(LlamaForCausalLM):
    """Fails without a word on every call that is not a plain one."""

    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(self.fail, with_kwargs=True)

    @staticmethod
    def fail(module, args, kwargs):
        assert "layout" not in kwargs
        if kwargs.get("cache", kwargs.get("past_key_values")) is not None:
            raise NotImplementedError


def test_an_error_without_a_message_is_a_reason_too():
    route = find_route(SilentlyFailing(CONFIGS["llama"]()).eval())
    assert route.name == "concatenated"
    assert "AssertionError" in route.reason
    assert "NotImplementedError" in route.reason


class TwiceAsLoud(LlamaForCausalLM):
    """Changes its logits in a way that no configuration tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_a_head_that_is_not_understood_is_refused():
    model = TwiceAsLoud(CONFIGS["llama"]()).eval()
    for _ in range(2):
        with pytest.raises(SoftPromptError, match="TwiceAsLoud changes its logits"):
            with_prompts(model, [])
        with pytest.raises(SoftPromptError, match="TwiceAsLoud changes its logits"):
            with_prompts(model, [], route="concatenated")


def test_a_model_without_a_head_is_refused():
    with pytest.raises(SoftPromptError, match="LlamaModel has no output head"):
        find_route(LlamaModel(CONFIGS["llama"]()).eval())


@pytest.mark.parametrize("family", ["cohere", "granite", "gemma2", "gpt2"])
def test_logits_are_the_models_own(family):
    model = shared_model(family, torch.float64)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits(model, model.base_model(ids).last_hidden_state[0]), model(ids).logits[0])


def test_logits_are_at_least_float32():
    model = shared_model("llama", torch.bfloat16)
    assert logits(model, torch.zeros(1, model.config.hidden_size, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_wrong_route_is_caught_by_its_gradient(monkeypatch):
    """The probe compares gradients as well: the right logits with a prompt cut off are not enough."""
    right = routes.concatenated
    monkeypatch.setitem(
        causal._FUNCTIONS, "packed", lambda model, prompts, batch: right(model, [p * 1 for p in prompts], batch)
    )
    assert objection(make_model("llama"), "packed") == ""
    monkeypatch.setitem(
        causal._FUNCTIONS,
        "packed",
        lambda model, prompts, batch: right(model, [prompts[0].detach() + 0 * prompts[0], prompts[1]], batch),
    )
    assert "away from the concatenation" in objection(make_model("llama"), "packed")


@pytest.mark.parametrize("route", ["shared_prefix", "concatenated"])
def test_a_tree_needs_the_packed_route(route):
    model = shared_model("llama")
    tree = Tree([3], [-1])
    batch = Batch(torch.arange(4), [4], [0], torch.tensor([0]), torch.tensor([4]), tree)
    with pytest.raises(ValueError, match="packed route"):
        hidden_states(route, model, EXAMPLE.prompts, batch)
