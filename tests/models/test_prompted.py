"""The training step against the plain concatenation: loss, gradient, batches of every shape, and bad input."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

import softprompt as sp
from softprompt.bases import decoder
from softprompt.errors import SoftPromptError
from softprompt.models import attention, probe, prompted
from softprompt.models.attention import choose_kernel
from softprompt.models.families.causal import Causal
from softprompt.models.probe import find_route
from softprompt.models.prompted import PromptedOutput
from softprompt.prompts.prompt import SoftPrompt
from tests.models.based import with_prompts
from tests.models.batches import Example, distance, examples, make_example
from tests.models.families import CONFIGS, CONTEXT, VOCABULARY, WIDTH, make_model, shared_model
from tests.models.reference import keep_float64

MIXED = make_example([7, 3, 12, 1], [4, 2], [1, 0, 1, 0], ["left", "right", "left", "right"], label_share=0.6)


@pytest.fixture
def llama() -> PreTrainedModel:
    return shared_model("llama", torch.float64)


@pytest.fixture(autouse=True)
def exact() -> object:
    """All of this file in float64 without the norms' rounding, except where a test says otherwise."""
    with keep_float64():
        yield


def step(
    model: PreTrainedModel, example: Example, dtype: torch.dtype = torch.float64, **options: object
) -> tuple[PromptedOutput, list[Tensor]]:
    """One forward and backward pass: the output and each prompt's gradient, zero where there is none."""
    prompts = example.parameters(dtype)
    output = with_prompts(model, prompts, **options)(**example.batch)
    output.loss.backward()
    return output, [torch.zeros_like(p) if p.grad is None else p.grad for p in prompts]


def assert_equal(answer: tuple[PromptedOutput, list[Tensor]], model: PreTrainedModel, example: Example) -> None:
    expected = example.reference(model)
    output, grads = answer
    assert distance([output.loss], [expected.loss]) < 1e-9
    assert distance([output.row_loss], [expected.row_loss]) < 1e-9
    assert distance(grads, expected.grads) < 1e-9


# Equality with the reference


@given(
    example=examples(),
    family=st.sampled_from(list(CONFIGS)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    kernel=st.sampled_from(["matmul", "sdpa"]),
    slower=st.integers(0, 2),
    max_tokens=st.sampled_from([None, None, 1, 8, 20]),
)
@settings(max_examples=100, deadline=None)
def test_loss_and_gradient_equal_the_reference(example, family, dtype, kernel, slower, max_tokens):
    model = shared_model(family, dtype)
    route = Causal.routes[min(Causal.routes.index(find_route(model).name) + slower, 2)]
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    with pytest.MonkeyPatch.context() as patch, keep_float64():
        patch.setattr(attention, "choose_kernel", lambda device, scores: kernel)
        expected = example.reference(model, dtype)
        output, grads = step(model, example, dtype, route=route, max_tokens=max_tokens)
    assert distance([output.loss], [expected.loss]) < limit
    assert distance([output.row_loss], [expected.row_loss]) < limit
    assert distance(grads, expected.grads) < limit


@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_bfloat16_is_as_near_to_float64_as_the_reference_is(monkeypatch, family, kernel):
    """Medians over ten batches; the factor of 1.5 is for chance, which of two roundings is the luckier."""
    monkeypatch.setattr(attention, "choose_kernel", lambda device, scores: kernel)
    model = shared_model(family, torch.bfloat16)
    exact = make_model(family, torch.bfloat16).double()  # the same rounded weights
    ours, theirs = [], []
    for seed in range(10):
        example = make_example([9, 4, 12], [5, 3], [0, 1, 0], label_share=0.5, seed=seed)
        truth = example.reference(exact).grads
        theirs.append(distance(example.reference(model, torch.float32).grads, truth))
        ours.append(distance(step(model, example, torch.float32)[1], truth))
    assert statistics.median(ours) <= 1.5 * statistics.median(theirs)


def test_padding_on_either_side_changes_nothing(llama):
    lengths = [5, 12, 8]
    unpadded = [make_example([n], [4], label_share=1.0, seed=n) for n in lengths]
    padded = []
    for side in ("left", "right"):
        ids = torch.full((3, 15), 7)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, one in enumerate(unpadded):
            at = slice(15 - lengths[row], 15) if side == "left" else slice(0, lengths[row])
            ids[row, at], mask[row, at], labels[row, at] = one.input_ids[0], 1, one.labels[0]
        padded.append(Example(unpadded[0].prompts, ids, mask, labels, torch.zeros(3, dtype=torch.long)))
    left, right = (step(llama, example)[0] for example in padded)
    alone = [step(llama, replace(one, prompts=unpadded[0].prompts))[0].row_loss for one in unpadded]
    assert distance([left.row_loss], [torch.cat(alone)]) < 1e-9
    assert distance([right.row_loss], [torch.cat(alone)]) < 1e-9


def test_without_a_mask_every_token_is_text(llama):
    example = make_example([6, 6], [3], label_share=1.0)
    model = with_prompts(llama, example.parameters())
    assert torch.equal(
        model(example.input_ids, labels=example.labels).loss,
        model(example.input_ids, torch.ones_like(example.input_ids), example.labels).loss,
    )


@pytest.mark.parametrize("route", Causal.routes)
def test_prompts_side_by_side_are_as_many_separate_runs(llama, route):
    example = make_example([7, 3, 9, 1, 5], [6, 2, 4], [0, 2, 0, 1, 2], label_share=1.0)
    output, grads = step(llama, example, route=route)
    count = (example.labels != -100).sum()
    for k in range(3):
        own = example.rows(example.prompt_index == k)
        alone, alone_grads = step(llama, own, route=route)
        assert distance([output.row_loss[example.prompt_index == k]], [alone.row_loss]) < 1e-9
        assert distance([grads[k] * count], [alone_grads[k] * (own.labels != -100).sum()]) < 1e-9


@pytest.mark.parametrize("route", Causal.routes)
@pytest.mark.parametrize("max_tokens", [None, 5])
def test_a_prompt_that_no_row_names_gets_no_gradient(llama, route, max_tokens):
    example = make_example([7, 3], [4, 2, 3], [1, 1])
    _, grads = step(llama, example, route=route, max_tokens=max_tokens)
    assert [bool(grad.any()) for grad in grads] == [False, True, False]


@pytest.mark.parametrize("route", Causal.routes)
def test_one_row_of_one_token_is_predicted_by_the_last_virtual_token(llama, route):
    example = make_example([1], [3], label_share=1.0)
    output, grads = step(llama, example, route=route)
    logits = llama(inputs_embeds=example.prompts[0][None]).logits[0, -1]
    assert distance([output.loss], [-logits.log_softmax(-1)[example.labels[0, 0]]]) < 1e-9
    assert_equal((output, grads), llama, example)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt_oss", "mamba"])
def test_a_bare_base_predicts_nothing_from_nothing(family):
    """Without a prompt the first token's label is not counted, as Transformers' own loss does not count it."""
    model = shared_model(family, torch.float64)
    example = make_example([7, 3], [0], sides=["right", "left"], label_share=1.0)
    output = with_prompts(model, [])(**example.batch, return_logits=True)
    right = model(example.input_ids[:1], labels=example.labels[:1]).loss
    assert distance([output.row_loss[0]], [right * 6]) < 1e-9
    assert output.places.tolist() == [[0, c] for c in range(1, 7)] + [[1, 5], [1, 6]]
    assert distance([output.loss], [example.reference(model).loss]) < 1e-9


@pytest.mark.parametrize("route", Causal.routes)
def test_a_prompt_of_no_tokens_may_stand_beside_others(llama, route):
    example = make_example([7, 3, 4], [4, 0], [1, 0, 1], label_share=1.0)
    assert_equal(step(llama, example, route=route), llama, example)


@pytest.mark.parametrize("route", Causal.routes)
@pytest.mark.parametrize("max_tokens", [None, 6])
def test_rows_without_labels_or_tokens_are_allowed(llama, route, max_tokens):
    example = make_example([7, 0, 3, 5], [4, 2], [0, 1, 1, 0], label_share=0.0)  # the one label is in row 0
    output, grads = step(llama, example, route=route, max_tokens=max_tokens)
    assert output.row_loss.bool().tolist() == [True, False, False, False]
    assert_equal((output, grads), llama, example)


@pytest.mark.parametrize("max_tokens", [None, 9])
def test_logits_at_the_labels_and_their_places(llama, max_tokens):
    model = with_prompts(llama, MIXED.parameters(), max_tokens=max_tokens)
    output = model(**MIXED.batch, return_logits=True)
    assert output.places.tolist() == (MIXED.labels != -100).nonzero().tolist()
    assert distance([output.logits], [MIXED.reference(llama).logits]) < 1e-9
    assert output.logits.requires_grad == (max_tokens is None)
    plain = model(**MIXED.batch)
    assert plain.logits is plain.places is None
    assert distance([plain.loss], [output.loss]) < 1e-9


def test_a_text_initialised_prompt_behaves_as_that_text(llama):
    beginning, text = torch.arange(5, 11), torch.arange(20, 29)
    prompt = nn.Parameter(llama.get_input_embeddings()(beginning).detach())
    output = with_prompts(llama, [prompt])(text[None], labels=text[None], return_logits=True)
    whole = llama(torch.cat([beginning, text])[None]).logits[0, 5:-1]
    assert distance([output.logits], [whole]) < 1e-9


# Splitting, chunking, recomputing


@given(examples(), st.integers(1, 30), st.sampled_from(Causal.routes), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_bound_on_tokens_changes_neither_loss_nor_gradient(example, max_tokens, route, recompute):
    model = shared_model("llama", torch.float64)
    recompute = recompute and route != "shared_prefix"
    with keep_float64():
        whole, whole_grads = step(model, example, route=route)
        parts, parts_grads = step(model, example, route=route, max_tokens=max_tokens, gradient_checkpointing=recompute)
    assert distance([parts.loss], [whole.loss]) < 1e-12
    assert distance([parts.row_loss], [whole.row_loss]) < 1e-12
    assert distance(parts_grads, whole_grads) < 1e-9


class Spy:
    """The lengths of the rows that a base computes, and the runs of its first layer."""

    def __init__(self, model: PreTrainedModel):
        self.rows: list[tuple[int, int]] = []
        self.layer_runs = 0
        model.base_model.register_forward_pre_hook(self._see, with_kwargs=True)
        next(model.base_model.layers[0].children()).register_forward_pre_hook(self._count)

    def _see(self, module, args, kwargs):
        if kwargs.get("inputs_embeds") is not None:
            self.rows.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    def _count(self, module, args):
        self.layer_runs += 1


def test_what_all_texts_begin_with_is_computed_once_after_each_prompt():
    model = make_model("llama")
    example = make_example([8, 6, 9, 7], [4, 3], [0, 1, 0, 1], beginning=5, label_share=1.0)
    prompts = example.parameters(torch.float32)
    prompted_model = with_prompts(model, prompts)
    spy = Spy(model)
    prompted_model(**example.batch).loss.backward()
    expected = example.reference(model, torch.float32)
    assert distance([p.grad for p in prompts], expected.grads) < 1e-4
    # The prompts and twice the beginning; then what is left of each text but its last token, which predicts nothing.
    assert spy.rows[0] == (1, 4 + 3 + 2 * 5 + 2 + 0 + 3 + 1)


def test_no_part_is_longer_than_the_bound():
    model = make_model("llama")
    prompted_model = with_prompts(model, make_example([1], [4]).parameters(torch.float32), max_tokens=10)
    spy = Spy(model)
    example = make_example([4, 6, 3, 12, 5, 5, 2], [4], label_share=1.0)
    prompted_model(**example.batch).loss.backward()
    # A row's last token predicts nothing and is left out; each part has the prompt, and one row alone is too long.
    assert spy.rows == [(1, 14), (1, 15), (1, 13)]
    spy.rows.clear()
    labels = example.labels.clone()
    labels[4:] = -100  # the last part has no labels
    prompted_model(example.input_ids, example.attention_mask, labels).loss.backward()
    assert spy.rows == [(1, 14), (1, 15)]


def test_the_packed_row_holds_each_prompt_once_and_no_padding():
    model = make_model("llama")
    example = make_example([7, 3, 9, 1, 5], [6, 2, 4], [0, 2, 0, 2, 2], label_share=1.0)
    prompted_model = with_prompts(model, example.parameters(torch.float32))
    spy = Spy(model)
    prompted_model(**example.batch)
    # The prompt that no row names is not computed, nor a row's last token, which predicts nothing (but its first is).
    assert spy.rows == [(1, 6 + 4 + 6 + 2 + 8 + 1 + 4)]


def test_parts_are_not_differentiated_where_no_gradient_is_wanted(monkeypatch, llama):
    model = with_prompts(llama, MIXED.parameters(), max_tokens=8)
    expected = MIXED.reference(llama).loss
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: pytest.fail("a gradient in evaluation"))
    with torch.no_grad():
        loss = model(**MIXED.batch).loss
    assert not loss.requires_grad
    assert distance([loss], [expected]) < 1e-9


def test_a_split_batch_refuses_a_second_derivative(llama):
    model = with_prompts(llama, MIXED.parameters(), max_tokens=8)
    (grad,) = torch.autograd.grad(model(**MIXED.batch).loss.square(), model.prompts[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("max_tokens", [None, 8])
def test_the_loss_may_be_scaled_before_the_backward_pass(llama, max_tokens):
    prompts = MIXED.parameters()
    (with_prompts(llama, prompts, max_tokens=max_tokens)(**MIXED.batch).loss * 3).backward()
    assert distance([p.grad / 3 for p in prompts], MIXED.reference(llama).grads) < 1e-9


@pytest.mark.parametrize("max_tokens", [None, 8])
@pytest.mark.parametrize("number", [5, torch.tensor(5)])
def test_the_trainers_number_of_items_takes_the_place_of_the_count(llama, number, max_tokens):
    prompts = MIXED.parameters()
    model = with_prompts(llama, prompts, max_tokens=max_tokens)
    output = model(**MIXED.batch, num_items_in_batch=number)
    output.loss.backward()
    expected = MIXED.reference(llama)
    share = int((MIXED.labels != -100).sum()) / 5
    assert distance([output.loss], [expected.loss * share]) < 1e-9
    assert distance([p.grad for p in prompts], [g * share for g in expected.grads]) < 1e-9


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_logits_in_turns_give_the_same(monkeypatch, llama, at_once):
    monkeypatch.setattr(prompted, "_MOST_LOGITS", at_once * VOCABULARY)
    held = []
    monkeypatch.setattr(
        prompted, "logits", lambda *args, own=prompted.logits: held.append(args[1].shape[0]) or own(*args)
    )
    assert_equal(step(llama, MIXED), llama, MIXED)
    labels = int((MIXED.labels != -100).sum())
    assert max(held) == min(at_once, labels)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "mamba", "bloom"])
def test_gradient_checkpointing_gives_the_same_gradient(family):
    model = make_model(family, torch.float64)
    assert_equal(step(model, MIXED, gradient_checkpointing=True), model, MIXED)


@pytest.mark.parametrize("mode", ["new", "train", "eval"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_checkpointing_recomputes_and_leaves_the_base_in_eval_mode(recompute, mode):
    model = make_model("llama")
    prompts = MIXED.parameters(torch.float32)
    prompted_model = with_prompts(model, prompts, gradient_checkpointing=recompute)
    if mode != "new":
        prompted_model.train(mode == "train")
    assert prompted_model.training == (mode != "eval")
    spy = Spy(model)
    loss = prompted_model(**MIXED.batch).loss
    assert spy.layer_runs == 1
    assert not any(module.training for module in model.modules())
    loss.backward()
    assert spy.layer_runs == 1 + recompute


def test_gradient_checkpointing_stays_with_its_model():
    """Neither another prompted model of the same base nor its own `generate` gets to feel it."""
    model = make_model("bloom", torch.float64)
    other = with_prompts(model, MIXED.parameters())
    recomputing = with_prompts(model, MIXED.parameters(), gradient_checkpointing=True)
    assert (other.route, recomputing.route) == ("shared_prefix", "concatenated")
    recomputing(**MIXED.batch).loss.backward()
    other(**MIXED.batch).loss.backward()
    assert distance([p.grad for p in other.prompts], MIXED.reference(model).grads) < 1e-9
    assert not any(module.training for module in model.modules())


# float16


@pytest.mark.parametrize("count", [128, 512, 2048])
@pytest.mark.parametrize("max_tokens", [None, 400])
def test_float16_loses_no_gradient_to_the_number_of_labels(count, max_tokens):
    rows = count // 32
    example = make_example([32] * rows, [6], label_share=1.0)
    found = []
    for dtype in (torch.float32, torch.float16):
        (prompt,) = example.parameters(torch.float32)
        model = make_model("llama", dtype, vocab_size=30_000)  # so that a word's share is small
        with_prompts(model, [prompt], max_tokens=max_tokens)(**example.batch).loss.backward()
        found.append(prompt.grad)
    assert distance([found[1]], [found[0]]) < 0.008


# Without padding


def test_a_flat_batch_equals_the_padded_one(llama):
    (padded := with_prompts(llama, MIXED.parameters()))(**MIXED.batch).loss.backward()
    batch = dict(MIXED.batch)
    present = batch.pop("attention_mask").bool()
    ids, labels = batch.pop("input_ids")[present], batch.pop("labels")[present]
    flat = with_prompts(llama, MIXED.parameters())
    output = flat(ids, labels=labels, lengths=present.sum(1), return_logits=True, **batch)
    output.loss.backward()
    for one, other in zip(flat.prompts, padded.prompts, strict=True):
        assert torch.equal(one.grad, other.grad)
    rows, columns = output.places.T
    starts = present.sum(1).cumsum(0) - present.sum(1)
    assert torch.equal(labels[starts[rows] + columns], labels[labels != -100])


@pytest.mark.parametrize(
    "change", [{"lengths": torch.tensor([3, 3])}, {"attention_mask": torch.ones(5)}, {"input_ids": torch.ones(1, 5)}]
)
def test_lengths_are_those_of_the_texts(change):
    batch = {"input_ids": torch.tensor([2, 3, 4, 5, 6]), "lengths": torch.tensor([3, 2])} | change
    model = with_prompts(shared_model("llama"), GOOD.parameters(torch.float32)[:1])
    with pytest.raises(SoftPromptError, match=r"with lengths input_ids must be \[N\]"):
        model(**batch, labels=batch["input_ids"])


# What is kept of it


def test_its_state_is_the_prompts():
    model = make_model("gpt2", tie_word_embeddings=True)
    prompted_model = with_prompts(model, MIXED.parameters(torch.float32))
    state = prompted_model.state_dict()
    assert list(state) == ["prompts.0", "prompts.1"]
    other = with_prompts(model, [nn.Parameter(torch.zeros_like(p)) for p in prompted_model.prompts])
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert all(torch.equal(a, b) for a, b in zip(other.prompts, prompted_model.prompts, strict=True))
    with pytest.raises(RuntimeError, match=r"Unexpected key"):
        other.load_state_dict({**state, "prompts.9": state["prompts.0"]})


def test_a_trainer_of_it_keeps_and_resumes_the_prompts_alone(tmp_path):
    """Tied weights would end the first checkpoint, and others would be written whole."""
    model = make_model("gpt2", tie_word_embeddings=True)
    rows = [{name: value[0] for name, value in MIXED.rows(torch.tensor([0])).batch.items()} for _ in range(8)]

    def train(steps, resume=None):
        settings = {"max_steps": steps, "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
        arguments = TrainingArguments(tmp_path, per_device_train_batch_size=2, learning_rate=0.1, **settings)
        prompted_model = with_prompts(model, MIXED.parameters(torch.float32))
        Trainer(prompted_model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return [prompt.detach().clone() for prompt in prompted_model.prompts]

    whole = train(4)
    (file,) = (tmp_path / "checkpoint-2").glob("*.safetensors")
    assert sum(tensor.numel() for tensor in load_file(file).values()) == sum(p.numel() for p in MIXED.prompts)
    resumed = train(4, str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_without_labels_each_logit_predicts_the_token_at_its_place():
    with_labels, without = (with_prompts(make_model("llama"), MIXED.parameters(torch.float32)) for _ in range(2))
    labelled = with_labels(**MIXED.batch, return_logits=True)
    every = without(**{name: value for name, value in MIXED.batch.items() if name != "labels"})
    assert every.loss is None
    assert every.logits.shape[:2] == MIXED.input_ids.shape
    assert distance([every.logits[tuple(labelled.places.T)]], [labelled.logits]) < 1e-5
    assert not every.logits[MIXED.attention_mask == 0].any()


@pytest.mark.parametrize("tokens_at_once", [None, 7])
def test_label_smoothing_factor_of_a_trainer(tmp_path, tokens_at_once):
    """One step of plain gradient descent is the smoothed cross-entropy's own."""
    model = make_model("llama")
    rows = [{name: value[k] for name, value in MIXED.batch.items()} for k in range(len(MIXED.input_ids))]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=len(rows),
        report_to="none",
        use_cpu=True,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,
        label_smoothing_factor=0.1,
    )
    trained = with_prompts(model, MIXED.parameters(torch.float32), max_tokens=tokens_at_once)
    Trainer(trained, arguments, train_dataset=rows).train()
    expected = with_prompts(model, MIXED.parameters(torch.float32))
    found = expected(**MIXED.batch, return_logits=True)
    targets = MIXED.labels[tuple(found.places.T)]
    nn.functional.cross_entropy(found.logits, targets, label_smoothing=0.1).backward()
    for after, before in zip(trained.prompts, expected.prompts, strict=True):
        assert distance([before.detach() - after.detach()], [before.grad]) < 1e-3


def test_without_labels_heads_and_lengths_say_what_is_needed():
    model = with_prompts(shared_model("llama"), GOOD.parameters(torch.float32)[:1])
    with pytest.raises(SoftPromptError, match="labels are needed"):
        model(torch.tensor([2, 3, 4]), lengths=torch.tensor([3]))
    with pytest.raises(SoftPromptError, match="labels are needed"):
        with_prompts(shared_model("llama"), [SoftPrompt(torch.zeros(2, WIDTH), head=torch.zeros(3, WIDTH))])(
            torch.tensor([[2, 3, 4]])
        )


# Numbers that are not finite


@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
@pytest.mark.parametrize("route", Causal.routes)
def test_numbers_that_are_not_finite_stay_with_their_prompt(route, kernel, monkeypatch):
    """Shorter rows and prompts are padded; what padding stands for must not come from the other prompt's rows."""
    monkeypatch.setattr(attention, "choose_kernel", lambda device, scores: kernel)
    model = make_model("llama")
    example = make_example([9, 4, 12, 7, 5], [6, 3], [0, 1, 0, 1, 1], label_share=1.0)
    bad, good = example.parameters(torch.float32)
    bad.data.fill_(float("nan"))
    answer = with_prompts(model, [bad, good], route=route)(**example.batch)
    answer.loss.backward()
    alone = example.rows(example.prompt_index == 1)
    other = nn.Parameter(good.detach().clone())
    batch = {**alone.batch, "prompt_index": torch.zeros(3, dtype=torch.long)}
    count = int((example.labels != -100).sum())
    expected = with_prompts(model, [other], route="concatenated")(**batch, num_items_in_batch=count)
    expected.loss.backward()
    assert not answer.row_loss[example.prompt_index == 0].isfinite().any()
    torch.testing.assert_close(answer.row_loss[example.prompt_index == 1], expected.row_loss)
    torch.testing.assert_close(good.grad, other.grad)


# Dropout and the base


def with_dropout() -> PreTrainedModel:
    return make_model("gpt2", torch.float64, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)


def test_dropout_stays_off():
    model = with_dropout().train()
    prompted_model = with_prompts(model, MIXED.parameters())
    expected = prompted_model(**MIXED.batch).loss
    assert distance([expected], [MIXED.reference(make_model("gpt2", torch.float64)).loss]) < 1e-9
    prompted_model.train()
    assert not any(module.training for module in model.modules())
    assert torch.equal(prompted_model(**MIXED.batch).loss, expected)
    model.train()  # by someone else
    assert torch.equal(prompted_model(**MIXED.batch).loss, expected)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("family", "dropout"), [("gpt2", ("resid_pdrop", "embd_pdrop", "attn_pdrop")), ("opt", ("dropout",))]
)
def test_gradient_checkpointing_leaves_dropout_off(family, dropout):
    """OPT drops out in its layers themselves, GPT-2 in modules within them."""
    model = make_model(family, torch.float64, **dict.fromkeys(dropout, 0.5))
    assert_equal(step(model, MIXED, gradient_checkpointing=True), make_model(family, torch.float64), MIXED)


class Nested(GradientCheckpointingLayer):
    """A layer around another one, as in Zamba."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_gradient_checkpointing_of_layers_within_layers():
    model = make_model("llama", torch.float64)
    model.model.layers[0] = Nested(model.model.layers[0])
    spy = Spy(model)
    prompts = MIXED.parameters()
    with_prompts(model, prompts, gradient_checkpointing=True)(**MIXED.batch).loss.backward()
    assert distance([p.grad for p in prompts], MIXED.reference(make_model("llama", torch.float64)).grads) < 1e-9
    assert spy.layer_runs


def test_gradient_checkpointing_that_changes_the_gradient_is_refused():
    """A layer that computes something else when it is run again, in the backward pass."""
    model = make_model("llama")

    def scale(module, args, output):
        return output * (1 + (torch._C._current_autograd_node() is not None))

    model.model.layers[0].input_layernorm.register_forward_hook(scale)
    with pytest.raises(SoftPromptError, match="gradient checkpointing changes LlamaForCausalLM's gradient"):
        with_prompts(model, MIXED.parameters(torch.float32), gradient_checkpointing=True, route="concatenated")


def test_a_base_that_cannot_be_recomputed_is_refused(monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr(decoder, "GradientCheckpointingLayer", nn.Conv3d)  # of which it has none
    with pytest.raises(SoftPromptError, match="LlamaForCausalLM does not support gradient checkpointing"):
        with_prompts(model, [], gradient_checkpointing=True)


@pytest.mark.parametrize(
    "options", [{}, {"max_tokens": 8}, {"gradient_checkpointing": True}, {"route": "shared_prefix"}]
)
def test_the_base_stays_bit_for_bit_and_without_gradient(options):
    model = make_model("llama").requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prompts = MIXED.parameters(torch.float32)
    prompted_model = with_prompts(model, prompts, **options)
    optimizer = torch.optim.AdamW([p for p in prompted_model.parameters() if p.requires_grad], lr=0.1)
    start = [p.detach().clone() for p in prompts]
    prompted_model(**MIXED.batch).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(map(torch.equal, prompts, start))


def test_the_prompts_alone_are_trained_and_in_order(tiny_base):
    own = nn.Parameter(torch.randn(2, 32))
    soft = SoftPrompt(embeddings=torch.randn(3, 32))
    model = with_prompts(tiny_base, [soft, own])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2
    assert torch.equal(trained[0], soft.embeddings)
    assert trained[0].data_ptr() != soft.embeddings.data_ptr()  # a copy: training leaves the given prompt alone
    assert trained[1] is own
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["prompts.0", "prompts.1"]


def test_the_kernel_is_named():
    assert with_prompts(shared_model("llama"), []).kernel == f"packed/{choose_kernel(torch.device('cpu'), 1)}"
    assert with_prompts(shared_model("bloom"), []).kernel == "shared_prefix"


# Bad input

GOOD = make_example([5, 3], [2, 3], [0, 1], label_share=1.0)


def changed(name: str, *changes: tuple[tuple[int, ...], int]) -> dict[str, Tensor]:
    value = GOOD.batch[name].clone()
    for place, number in changes:
        value[place] = number
    return {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(0, 5, dtype=torch.long)}, r"at least one row and one token, not \(0, 5\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"at least one row and one token, not \(2, 0\)"),
        ({"input_ids": torch.arange(5)}, r"\[B, T\].*not \(5,\)"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask is \(2, 4\), input_ids \(2, 5\)"),
        ({"labels": torch.ones(1, 5)}, r"labels are \(1, 5\), input_ids \(2, 5\)"),
        ({"labels": None, "prompt_index": None}, "prompt_index is needed"),
        ({"labels": torch.full((2, 5), -100)}, "no label to predict"),
        (changed("labels", ((1, 3), 4)), "label at row 1, column 3 stands on padding"),
        (changed("labels", ((1, 2), VOCABULARY)), f"label {VOCABULARY} at row 1, column 2: .* {VOCABULARY} ids"),
        (changed("labels", ((0, 2), -1)), "label -1 at row 0, column 2"),
        (changed("input_ids", ((0, 4), VOCABULARY)), f"token {VOCABULARY} at row 0, column 4: .* {VOCABULARY} embed"),
        (changed("input_ids", ((1, 0), -5)), "token -5 at row 1, column 0"),
        ({"prompt_index": torch.tensor([0, 2])}, "prompt_index of row 1 is 2: there are 2 prompts"),
        ({"prompt_index": torch.tensor([-1, 0])}, "prompt_index of row 0 is -1"),
        ({"prompt_index": None}, "prompt_index is needed: there are 2 prompts"),
        ({"prompt_index": torch.tensor([0])}, "prompt_index has 1 entries for 2 rows"),
        ({"prompt_index": torch.zeros(2, 1, dtype=torch.long)}, r"prompt_index must be \[B\] integers"),
        ({"prompt_index": torch.zeros(2)}, r"prompt_index must be \[B\] integers"),
    ],
)
def test_bad_batches_are_refused_in_one_line(change, message):
    with pytest.raises(SoftPromptError, match=message) as caught:
        with_prompts(shared_model("llama"), GOOD.parameters(torch.float32))(**GOOD.batch | change)
    assert "\n" not in str(caught.value)


def test_what_stands_on_padding_need_not_be_a_token(llama):
    example = make_example([5, 3], [2], label_share=1.0)
    odd = replace(example, input_ids=example.input_ids.masked_fill(example.attention_mask == 0, -100))
    assert torch.equal(step(llama, odd)[0].loss, step(llama, example)[0].loss)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_prompt_and_text_may_fill_the_context_but_not_more(family):
    model = shared_model(family)
    prompts = [nn.Parameter(torch.randn(4, WIDTH))]
    full, longer = make_example([CONTEXT - 4], [4]), make_example([2, CONTEXT - 3], [4])
    assert with_prompts(model, prompts)(**full.batch).loss.isfinite()
    with pytest.raises(SoftPromptError, match=f"row 1 has {CONTEXT - 3} tokens behind 4 virtual .* holds {CONTEXT}"):
        with_prompts(model, prompts)(**longer.batch)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, WIDTH + 1), rf"\[P, {WIDTH}\], not \[3, {WIDTH + 1}\]"),
        ((WIDTH,), rf"\[P, {WIDTH}\], not \[{WIDTH}\]"),
        ((CONTEXT, WIDTH), f"{CONTEXT} virtual tokens leave no room in a context of {CONTEXT}"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(SoftPromptError, match=message):
        with_prompts(shared_model("llama"), [nn.Parameter(torch.zeros(shape))])


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"max_tokens": 0}, "max_tokens is 0"),
        ("llama", {"route": "fastest"}, "'fastest': one of packed, shared_prefix, concatenated"),
        ("mamba", {"route": "packed"}, "MambaForCausalLM is not exact by the route packed: .* state"),
        ("mamba", {"route": "shared_prefix"}, "not exact by the route shared_prefix"),
        ("gpt_oss", {"route": "packed"}, "s_aux"),
        ("llama", {"route": "shared_prefix", "gradient_checkpointing": True}, "allows no gradient checkpointing"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(family, options, message):
    with pytest.raises(SoftPromptError, match=message):
        with_prompts(shared_model(family), [], **options)


def test_for_inference_no_gradient_is_proven_or_taken(tiny_base: sp.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = SoftPrompt.random(tiny_base, 3, seed=0)
    gradients = []
    plain = probe._answer
    monkeypatch.setattr(probe, "_answer", lambda *given: gradients.append(given[-1]) or plain(*given))
    asked = sp.PromptedModel(tiny_base, [prompt], inference=True)
    assert (asked.route, asked.logits_route) == ("packed", "packed")
    assert set(gradients) == {False}
    assert not any(one.requires_grad for one in asked.parameters())
    ids = torch.arange(2, 12)[None]
    trained = sp.PromptedModel(tiny_base, [prompt])
    assert any(gradients)
    assert trained.prompts[0].requires_grad
    assert torch.equal(asked(ids, labels=ids).loss, trained(ids, labels=ids).loss.detach())
