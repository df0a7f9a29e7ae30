"""A PEFT script with the one line `accelerate_peft(model)` against the same script without it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import (
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother

import softprompt as sp
from softprompt.errors import SoftPromptError
from softprompt.models import peft as module
from softprompt.models.peft import AcceleratedPeftModel, accelerate_peft
from tests.conftest import make_base, make_tokenizer

P = 5


def make_peft(dtype: torch.dtype = torch.float32, **adapters: int) -> PeftModelForCausalLM:
    """A tiny Llama with a prompt of P virtual tokens, or one of each length given by name. The same each time."""
    model = make_base(dtype).model
    torch.manual_seed(1)
    for name, length in (adapters or {"default": P}).items():
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    for name in adapters or {"default": P}:
        prompt_of(model, name).data = prompt_of(model, name).data.to(dtype)
    return model


def prompt_of(model: PeftModelForCausalLM, name: str = "default") -> Tensor:
    return model.prompt_encoder[name].embedding.weight


def make_batch(lengths: tuple[int, ...] = (9, 4, 7), left: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Padded rows; in each the first label stands on the first token and every third is left out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 258, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    labels = ids.masked_fill(~mask | (torch.arange(max(lengths)) % 3 == 1), -100)
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long(), "labels": labels}


def row_of(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row without its padding."""
    present = batch["attention_mask"][row].bool()
    return {name: value[row, present][None] for name, value in batch.items()}


def step(model: PeftModelForCausalLM, batch: dict[str, Any], name: str = "default") -> tuple[Tensor, Tensor]:
    """Loss and gradient of one prompt."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), prompt_of(model, name).grad.clone()


def distance(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).detach().norm() / expected.detach().norm())


@pytest.fixture
def forbid_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where PEFT's own forward is taken."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("PEFT's own forward was called")

    monkeypatch.setattr(PeftModelForCausalLM, "forward", forward)


@pytest.fixture(autouse=True)
def told_nothing() -> None:
    module._tell.cache_clear()


@pytest.mark.parametrize("route", ["packed", "shared_prefix", "concatenated"])
@pytest.mark.parametrize("items", [None, 7])
def test_step_equals_peft(route: str, items: int | None) -> None:
    batch = make_batch() | {"num_items_in_batch": items}
    loss, gradient = step(make_peft(torch.float64), batch)
    model = accelerate_peft(make_peft(torch.float64))
    assert model.route == "packed"
    model.route = route
    ours, our_gradient = step(model, batch)
    assert distance(ours, loss) < 1e-6
    assert distance(our_gradient, gradient) < 1e-6


def test_float32_and_bfloat16_steps_equal_peft() -> None:
    _, exact = step(make_peft(torch.float64), make_batch())
    for dtype in (torch.float32, torch.bfloat16):
        theirs = make_peft(dtype)
        ours = accelerate_peft(make_peft(dtype))
        for model in (theirs, ours):
            prompt_of(model).data = prompt_of(make_peft()).data  # PEFT keeps prompts in float32
        gradients = [step(model, make_batch())[1].double() for model in (theirs, ours)]
        assert distance(gradients[1], exact) < max(1e-4, 1.5 * distance(gradients[0], exact))


@pytest.mark.usefixtures("forbid_peft")
@pytest.mark.parametrize("of", ["loss", "logits"])
def test_float16_loses_no_gradient_to_the_number_of_labels(of: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(2, 258, (32, 64))
    found = []
    for dtype in (torch.float32, torch.float16):
        model = accelerate_peft(make_peft(dtype))
        prompt_of(model).data = prompt_of(make_peft()).data.float()
        output = model(input_ids=ids, labels=ids)
        (output.loss if of == "loss" else output.logits.float().square().mean()).backward()
        found.append(prompt_of(model).grad.double())
    assert distance(found[1], found[0]) < 0.02


def test_label_smoothing_is_that_of_the_words() -> None:
    """With a prompt of words, the loss is what Transformers has for the row that begins with these words."""
    model = make_peft(torch.float64)
    words = torch.tensor([7, 8, 9, 10, 11])[: len(prompt_of(model))]
    prompt_of(model).data = model.base_model.get_input_embeddings()(words).detach()
    batch = make_batch()
    labels, whole = batch.pop("labels"), torch.cat([words.expand(3, -1), batch["input_ids"]], 1)
    mask = torch.cat([torch.ones(3, len(words), dtype=torch.long), batch["attention_mask"]], 1)
    with torch.no_grad():
        outputs = model.base_model(input_ids=whole, attention_mask=mask)
        padded = F.pad(labels, (len(words), 0), value=-100)
        expected = LabelSmoother(epsilon=0.1)(outputs, padded, shift_labels=True)
        for of in (model, accelerate_peft(model)):
            assert distance(sp.LabelSmoothing(0.1)(of(**batch), labels), expected) < 1e-6
        outputs = model.base_model(input_ids=whole, attention_mask=mask)  # and without a prompt
        assert distance(sp.LabelSmoothing(0.1)(outputs, padded), expected) < 1e-6
    with pytest.raises(SoftPromptError, match="below 1"):
        sp.LabelSmoothing(1.0)


def test_label_smoothing_in_a_trainer(tmp_path: Path) -> None:
    rows = [{name: value[0] for name, value in row_of(make_batch((6, 6)), 0).items()} for _ in range(4)]
    arguments = TrainingArguments(tmp_path, max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        accelerate_peft(make_peft()), arguments, train_dataset=rows, compute_loss_func=sp.LabelSmoothing(0.1)
    )
    assert trainer.train().training_loss > 0


def test_padding_without_attention_mask_and_micro_batch_without_labels() -> None:
    theirs, ours = make_peft(), accelerate_peft(make_peft())
    batch = make_batch((6, 6))
    del batch["attention_mask"]
    assert distance(step(ours, batch)[1], step(theirs, batch)[1]) < 1e-5
    empty = batch | {"labels": torch.full_like(batch["labels"], -100)}
    for model in (theirs, ours):
        loss, gradient = step(model, empty | {"num_items_in_batch": 5})
        assert loss == 0
        assert not gradient.any()
        assert model(**empty).loss.isnan()


def test_loss_over_many_label_places_is_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = step(make_peft(), make_batch())
    monkeypatch.setattr(module, "_MOST_LOGITS", 258 * 4)
    ours = step(accelerate_peft(make_peft()), make_batch())
    assert distance(ours[0], expected[0]) < 1e-5
    assert distance(ours[1], expected[1]) < 1e-5


@pytest.mark.usefixtures("forbid_peft")
def test_left_padding_equals_unpadded_rows() -> None:
    model, batch = accelerate_peft(make_peft(torch.float64)), make_batch(left=True)
    loss, gradient = step(model, batch | {"num_items_in_batch": 1})
    rows = [step(model, row_of(batch, row) | {"num_items_in_batch": 1}) for row in range(3)]
    assert distance(loss, sum(row[0] for row in rows)) < 1e-6
    assert distance(gradient, sum(row[1] for row in rows)) < 1e-6


def test_peft_itself_is_wrong_on_left_padding() -> None:
    model, batch = make_peft(torch.float64), make_batch(left=True)
    loss, _ = step(model, batch | {"num_items_in_batch": 1})
    rows = [step(model, row_of(batch, row) | {"num_items_in_batch": 1})[0] for row in range(3)]
    assert distance(loss, sum(rows)) > 1e-3


@pytest.mark.parametrize("left", [False, True])
def test_logits_equal_those_of_peft_at_every_real_place(left: bool) -> None:
    theirs, ours = make_peft(torch.float64), accelerate_peft(make_peft(torch.float64))
    batch = make_batch(left=left)
    logits = ours(**batch).logits
    assert logits.shape == (3, P + 9, 258)
    assert logits.dtype == torch.float64
    for row in range(3):
        expected = theirs(**row_of(batch, row)).logits[0]
        present = batch["attention_mask"][row].bool()
        assert torch.allclose(logits[row, :P], expected[:P])
        assert torch.allclose(logits[row, P:][present], expected[P:])
    # the labels' predictions stand one column before them, whatever the padding
    loss = torch.nn.functional.cross_entropy(logits[:, P - 1 : -1].transpose(1, 2), batch["labels"])
    assert torch.allclose(loss, ours(**batch).loss)


def test_logits_are_computed_only_when_used_and_from_the_prompt_of_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = accelerate_peft(make_peft())
    calls = []
    compute = AcceleratedPeftModel._logits
    monkeypatch.setattr(AcceleratedPeftModel, "_logits", lambda self, *args: calls.append(0) or compute(self, *args))
    expected = make_peft()(**make_batch((6, 6))).logits
    outputs = model(**make_batch((6, 6)))
    assert isinstance(outputs["logits"], Tensor)
    assert outputs.logits.shape == expected.shape
    assert (outputs.logits.dtype, outputs.logits.device) == (expected.dtype, expected.device)
    outputs.loss.backward()
    with torch.no_grad():
        prompt_of(model).add_(1.0)
    assert not calls
    assert torch.allclose(outputs.to_tuple()[1].detach(), expected, atol=1e-4)
    assert torch.equal(outputs.logits.argmax(-1), expected.argmax(-1))
    assert len(calls) == 1


def test_logits_carry_the_gradient() -> None:
    gradients = []
    for model in (make_peft(), accelerate_peft(make_peft())):
        outputs = model(**make_batch((6, 6)))
        with torch.no_grad():
            outputs.logits.sum()  # a metric first
        outputs.logits.square().mean().backward()
        gradients.append(prompt_of(model).grad)
    assert distance(*gradients) < 1e-5
    with torch.no_grad():
        assert not accelerate_peft(make_peft())(**make_batch()).logits.requires_grad


@pytest.mark.usefixtures("forbid_peft")
@pytest.mark.parametrize("left", [False, True])
def test_rows_with_different_adapters_mix(left: bool) -> None:
    model = accelerate_peft(make_peft(torch.float64, short=2, long=7))
    names, batch = ["long", "short", "long"], make_batch(left=left)
    outputs = model(**batch, adapter_names=names, num_items_in_batch=1)
    outputs.loss.backward()
    gradients = {name: prompt_of(model, name).grad.clone() for name in ("short", "long")}
    loss = 0.0
    expected = {"short": 0.0, "long": 0.0}
    for row, name in enumerate(names):
        model.set_adapter(name)
        alone = row_of(batch, row)
        row_loss, row_gradient = step(model, alone | {"num_items_in_batch": 1}, name)
        loss += row_loss
        expected[name] += row_gradient
        length = len(prompt_of(model, name))
        row_logits = model(**alone).logits[0]
        present = batch["attention_mask"][row].bool()
        assert torch.allclose(outputs.logits[row, 7 - length : 7], row_logits[:length])
        assert torch.allclose(outputs.logits[row, 7:][present], row_logits[length:])
    assert distance(outputs.loss, loss) < 1e-6
    for name, gradient in expected.items():
        assert distance(gradients[name], gradient) < 1e-6
    del batch["labels"]
    assert torch.allclose(model(**batch, adapter_names=names).logits, outputs.logits)


def test_peft_itself_ignores_adapter_names() -> None:
    model = make_peft(first=3, second=3)
    losses = [model(**make_batch(), adapter_names=[name] * 3).loss for name in ("first", "second")]
    assert losses[0] == losses[1]
    model = accelerate_peft(model)
    losses = [model(**make_batch(), adapter_names=[name] * 3).loss for name in ("first", "second")]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"adapter_names": ["default", "other", "default"]},
            "adapter_names of row 1 is 'other': the adapters are default",
        ),
        ({"adapter_names": ["default"]}, "adapter_names has 1 entries for 3 rows"),
        ({"output_hidden_states": True}, "adapter_names cannot be combined with output_hidden_states"),
        ({"labels": torch.full((3, 9), 5)}, "adapter_names cannot be combined with labels on padding"),
        ({"input_ids": None}, "adapter_names cannot be combined with no input_ids"),
    ],
)
def test_adapter_names_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    model = accelerate_peft(make_peft())
    with pytest.raises(SoftPromptError) as caught:
        model(**{**make_batch(), "adapter_names": ["default"] * 3, **change})
    assert str(caught.value) == message


def test_active_adapter_is_the_one_set() -> None:
    theirs, ours = make_peft(first=3, second=4), accelerate_peft(make_peft(first=3, second=4))
    for model in (theirs, ours):
        model.set_adapter("second")
    assert distance(step(ours, make_batch(), "second")[1], step(theirs, make_batch(), "second")[1]) < 1e-5
    assert prompt_of(ours, "first").grad is None


def holes(batch: dict[str, Any]) -> dict[str, Any]:
    mask = batch["attention_mask"].clone()
    mask[0, 3] = 0
    labels = batch["labels"].masked_fill(mask == 0, -100)
    return batch | {"attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch | {"labels": None},
        lambda batch: batch | {"labels": batch["input_ids"]},
        lambda batch: batch | {"output_hidden_states": True},
        lambda batch: batch | {"use_cache": True},
        lambda batch: batch | {"return_dict": False},
        lambda batch: batch | {"logits_to_keep": 9 + P},
        lambda batch: (
            batch | {"input_ids": None, "inputs_embeds": torch.randn(3, 9, 32, generator=torch.manual_seed(0))}
        ),
        holes,
    ],
)
def test_other_calls_are_answered_by_peft(change: Any, caplog: pytest.LogCaptureFixture) -> None:
    batch = change(make_batch())
    expected = make_peft()(**batch)
    answer = accelerate_peft(make_peft())(**batch)
    assert type(answer) is type(expected)
    if isinstance(expected, tuple):
        assert torch.equal(answer[0], expected[0])
        assert torch.equal(answer[1], expected[1])
        return
    assert answer.keys() == expected.keys()
    assert torch.allclose(answer.logits, expected.logits, atol=1e-5)
    if batch["labels"] is not None:
        assert torch.allclose(answer.loss, expected.loss)
        assert "is computed by PEFT's own forward" in caplog.text


def test_a_loss_of_the_bases_own_is_kept() -> None:
    model = accelerate_peft(make_peft())
    model.base_model.loss_function = lambda logits, labels, **options: logits.sum() * 0 + 42
    assert model(**make_batch()).loss == 42


def test_disabled_adapter_is_the_bare_base() -> None:
    model, batch = make_peft(), make_batch()
    expected = model.base_model(**batch)
    with model.disable_adapter():
        model(**batch)
    model = accelerate_peft(model)  # `disable_adapter` has left PEFT's forward on the instance
    before = step(model, batch)
    with model.disable_adapter():
        outputs = model(**batch)
    assert torch.allclose(outputs.loss, expected.loss)
    assert torch.allclose(outputs.logits, expected.logits, atol=1e-5)
    after = step(model, batch)
    assert torch.equal(after[1], before[1])
    assert isinstance(model(**batch).logits, module._LazyTensor)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's own
def test_generate_is_that_of_peft() -> None:
    prompt = {name: make_batch((6, 6))[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    expected = make_peft().eval().generate(**prompt, **options)
    model = accelerate_peft(make_peft()).eval()
    assert torch.equal(model.generate(**prompt, **options), expected)
    with pytest.raises(ValueError, match="adapter_names"):
        model.generate(**prompt, **options, adapter_names=["default"] * 2)


def test_saved_file_is_pefts(tmp_path: Path) -> None:
    model = accelerate_peft(make_peft())
    step(model, make_batch())
    torch.optim.SGD([prompt_of(model)], lr=0.1).step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base().model, tmp_path)
    assert type(loaded) is PeftModelForCausalLM
    assert torch.equal(prompt_of(loaded), prompt_of(model))
    assert torch.allclose(accelerate_peft(loaded)(**make_batch()).loss, model(**make_batch()).loss)
    assert set(model.state_dict()) == set(make_peft().state_dict())


def test_same_model_comes_back_and_can_be_copied() -> None:
    model = make_peft()
    accelerated = accelerate_peft(model)
    assert accelerated is model
    assert accelerate_peft(accelerated) is model
    assert isinstance(model, PeftModelForCausalLM)
    assert torch.equal(copy.deepcopy(model)(**make_batch()).loss, model(**make_batch()).loss)


def test_models_that_are_refused() -> None:
    def base() -> Any:
        return make_base().model

    tiny_t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    seq2seq = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2)
    causal = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    head = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, modules_to_save=["lm_head"])
    patched = get_peft_model(base(), causal)
    patched.forward = lambda **batch: None
    for model, message in [
        (base(), "takes a PeftModelForCausalLM, .* not this LlamaForCausalLM"),
        (get_peft_model(tiny_t5, seq2seq), "not this PeftModelForSeq2SeqLM"),
        (get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])), "is LORA: only PROMPT_"),
        (get_peft_model(base(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), "is PREFIX_TUNING"),
        (get_peft_model(base(), PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)), "is P_TUNING"),
        (get_peft_model(base(), head), "lm_head.* of the base is to be trained"),
        (patched, "forward has been replaced"),
    ]:
        with pytest.raises(SoftPromptError, match=message):
            accelerate_peft(model)


def make_gpt2(dropout: float) -> PeftModelForCausalLM:
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **rates)
    )
    return get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))


def test_base_with_dropout_stays_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    expected = step(make_gpt2(0.5).eval(), make_batch())
    model = accelerate_peft(make_gpt2(0.5))
    assert caplog.text.count("dropout") == 1
    assert "resid_pdrop 0.5" in caplog.text
    model.train()
    assert model.training
    assert not any(part.training for part in model.base_model.modules())
    ours = step(model, make_batch())
    assert distance(ours[0], expected[0]) < 1e-5
    assert distance(ours[1], expected[1]) < 1e-5
    recompute_layers(model)
    with pytest.raises(SoftPromptError, match=r"gradient checkpointing would switch .* \(resid_pdrop 0.5\)"):
        model(**make_batch())


def recompute_layers(model: PeftModel, options: dict[str, bool] | None = None) -> None:
    """Switch gradient checkpointing on, by the name that this release of Transformers has for it."""
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable(options)


def test_base_without_dropout_keeps_its_mode(caplog: pytest.LogCaptureFixture) -> None:
    assert make_peft().train().base_model.training
    assert accelerate_peft(make_peft().train()).base_model.training
    assert not accelerate_peft(make_peft().eval()).base_model.training
    assert not caplog.text


@pytest.mark.parametrize("route", ["packed", "shared_prefix"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_the_same(route: str, reentrant: bool) -> None:
    expected = step(make_peft(torch.float64), make_batch())
    model = accelerate_peft(make_peft(torch.float64))
    model.route = route
    recompute_layers(model, {"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    layer, calls = model.base_model.model.layers[0].mlp, []
    layer.register_forward_pre_hook(lambda *args: calls.append(0))
    ours = step(model, make_batch())
    assert len(calls) == 2
    assert distance(ours[0], expected[0]) < 1e-6
    assert distance(ours[1], expected[1]) < 1e-6


ROWS = [{"input_ids": list(make_batch((3 + i * 5 % 11,), seed=i)["input_ids"][0].tolist())} for i in range(64)]


def collate(rows: list[dict[str, Any]], left: bool = False) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        ids, gap = row["input_ids"], width - len(row["input_ids"])
        for name, padding, values in (
            ("input_ids", 1, ids),
            ("attention_mask", 0, [1] * len(ids)),
            ("labels", -100, [-100, *ids[1:]]),
        ):
            batch[name].append([padding] * gap + values if left else values + [padding] * gap)
    return {name: torch.tensor(values) for name, values in batch.items()}


def make_trainer(
    model: PeftModelForCausalLM, folder: Path, trainer: type[Trainer] = Trainer, **options: Any
) -> Trainer:
    parts = {name: options.pop(name) for name in ("compute_metrics", "data_collator") if name in options}
    defaults = {
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, seed=0, **(defaults | options)
    )
    return trainer(
        model=model,
        args=arguments,
        train_dataset=ROWS,
        eval_dataset=ROWS[:12],
        **({"data_collator": collate} | parts),
    )


def losses(trainer: Trainer) -> Tensor:
    return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def test_trainer_has_the_same_loss_curve(tmp_path: Path) -> None:
    curves = []
    for fast in (False, True):
        model = accelerate_peft(make_peft()) if fast else make_peft()
        trainer = make_trainer(model, tmp_path, max_steps=50, gradient_accumulation_steps=2)
        assert trainer.model_accepts_loss_kwargs
        trainer.train()
        curves.append(losses(trainer))
    assert len(curves[0]) == 50
    assert curves[0][-5:].mean() < curves[0][:5].mean() - 0.3
    assert ((curves[1] - curves[0]) / curves[0]).abs().max() < 1e-4


@pytest.mark.usefixtures("forbid_peft")
def test_resumed_run_equals_uninterrupted(tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: TrainerControl, **options: Any) -> None:
            control.should_training_stop = state.global_step == 5

    options = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": 2}
    whole = accelerate_peft(make_peft())
    make_trainer(whole, tmp_path / "whole", **options).train()
    first = make_trainer(accelerate_peft(make_peft()), tmp_path / "parts", **options)
    first.add_callback(Interrupt())
    first.train()
    model = accelerate_peft(make_peft())
    second = make_trainer(model, tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=True)
    assert first.state.global_step == 5
    assert len(losses(second)) == 10
    assert torch.equal(prompt_of(model), prompt_of(whole))
    loaded = PeftModel.from_pretrained(make_base().model, tmp_path / "parts" / "checkpoint-10")
    assert torch.equal(prompt_of(loaded), prompt_of(model))


@pytest.mark.usefixtures("forbid_peft")
def test_trainer_with_left_padding_and_mixed_adapters(tmp_path: Path) -> None:
    names = {3: "short"}

    def mixed(rows: list[dict[str, Any]], left: bool) -> dict[str, Any]:
        return collate(rows, left) | {"adapter_names": [names.get(len(row["input_ids"]) % 4, "long") for row in rows]}

    curves = []
    for left in (False, True):
        model = accelerate_peft(make_peft(short=2, long=7))
        before = {name: prompt_of(model, name).detach().clone() for name in ("short", "long")}
        trainer = make_trainer(model, tmp_path, data_collator=lambda rows, left=left: mixed(rows, left))
        trainer.train()
        curves.append(losses(trainer))
        assert all(not torch.equal(prompt_of(model, name), value) for name, value in before.items())
    assert torch.allclose(*curves, rtol=1e-4)


def test_evaluation_gives_the_same_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def metrics(answers: Any) -> dict[str, float]:
        guesses = answers.predictions[:, P - 1 : -1].argmax(-1)
        known = answers.label_ids != -100
        found.append(guesses[known])
        return {"accuracy": float((guesses == answers.label_ids)[known].mean())}

    def width(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return collate([*rows, {"input_ids": [5] * 16}])  # one width, so that numbers can be compared place by place

    results = []
    for model in (make_peft(), accelerate_peft(make_peft())):
        trainer = make_trainer(model, tmp_path, compute_metrics=metrics, data_collator=width)
        results.append(trainer.evaluate())
    assert (found[0] == found[1]).all()
    assert results[0]["eval_accuracy"] == results[1]["eval_accuracy"]
    assert results[1]["eval_loss"] == pytest.approx(results[0]["eval_loss"], rel=1e-5)
    # without a metric nobody reads the logits, and nobody computes them
    monkeypatch.setattr(AcceleratedPeftModel, "_logits", None)
    result = make_trainer(accelerate_peft(make_peft()), tmp_path, data_collator=width).evaluate()
    assert result["eval_loss"] == pytest.approx(results[0]["eval_loss"], rel=1e-5)


def test_losses_of_a_scripts_own_still_work(tmp_path: Path) -> None:
    def compute_loss(self: Trainer, model: Any, inputs: Any, **options: Any) -> Any:
        logits = model(**inputs).logits[:, P - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), inputs["labels"], label_smoothing=0.1)

    curves = []
    for model in (make_peft(), accelerate_peft(make_peft())):
        trainer = make_trainer(model, tmp_path, type("OwnLoss", (Trainer,), {"compute_loss": compute_loss}))
        trainer.train()
        curves.append(losses(trainer))
    assert torch.allclose(*curves, rtol=1e-4)


def test_trainer_in_mixed_precision(tmp_path: Path) -> None:
    curves = []
    for model in (make_peft(), accelerate_peft(make_peft())):
        trainer = make_trainer(model, tmp_path, bf16=True)
        trainer.train()
        curves.append(losses(trainer))
    assert torch.allclose(*curves, rtol=0.02)


def sum_of_rows(model: PeftModelForCausalLM, batch: dict[str, Tensor], names: list[str]) -> Tensor:
    """The log-probability of all labels, row by row without padding."""
    total = torch.zeros(())
    for row, name in enumerate(names):
        model.set_adapter(name)
        total = total + model(**row_of(batch, row), fused_lm_head=True).log_probs.sum()
    return total


@pytest.mark.slow  # TRL takes up to twenty seconds to import
def test_fused_head_gives_the_same_figures() -> None:
    from trl.trainer.utils import add_fused_lm_head

    figures = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    answers = []
    for model in (make_peft(), accelerate_peft(make_peft())):
        add_fused_lm_head(model.get_base_model(), temperature=0.7, outputs=figures)
        outputs = model(**make_batch(), fused_lm_head=True, num_items_in_batch=7)
        outputs.log_probs.square().sum().backward()
        answers.append({**outputs, "gradient": prompt_of(model).grad})
    assert answers[0].keys() == answers[1].keys() == {"loss", *figures, "label_mask", "gradient"}
    for name, expected in answers[0].items():
        assert torch.allclose(answers[1][name], expected, rtol=1e-4, atol=1e-5), name
    model, names, batch = accelerate_peft(make_peft(short=2, long=7)), ["long", "short", "long"], make_batch(left=True)
    add_fused_lm_head(model.get_base_model(), temperature=0.7)
    mixed = model(**batch, adapter_names=names, fused_lm_head=True)
    assert mixed.log_probs.shape == (3, 7 + 9 - 1)
    assert distance(mixed.log_probs.sum(), sum_of_rows(model, batch, names)) < 1e-5
    with pytest.raises(SoftPromptError, match="fused_lm_head without labels"):
        model(batch["input_ids"], adapter_names=names, fused_lm_head=True)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("completion_only", [False, True])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL's own default
def test_sft_trainer_has_the_same_log(tmp_path: Path, completion_only: bool, request: pytest.FixtureRequest) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": f"row {i} ", "completion": "abc" * (1 + i % 7)} for i in range(40)]
    if not completion_only:
        rows = [{"text": row["prompt"] + row["completion"]} for row in rows]
    logs = []
    for fast in (False, True):
        model = make_peft()
        if fast:
            request.getfixturevalue("forbid_peft")
            model = accelerate_peft(model)
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=str(tmp_path),
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                max_steps=12,
                logging_steps=1,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                learning_rate=0.05,
                eval_strategy="steps",
                eval_steps=6,
                save_steps=12,
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:8]),
            processing_class=make_tokenizer(),
        )
        trainer.train()
        logs.append(trainer.state.log_history)
        loaded = PeftModel.from_pretrained(make_base().model, tmp_path / "checkpoint-12")
        assert torch.equal(prompt_of(loaded), prompt_of(model))
    assert sum("loss" in entry for entry in logs[0]) == 12
    assert sum("eval_loss" in entry for entry in logs[0]) == 2
    for theirs, ours in zip(logs[0], logs[1], strict=True):
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            if not name.endswith(("runtime", "per_second", "flos")):
                assert ours[name] == pytest.approx(value, rel=1e-4), name


def test_training_with_neftune_is_pefts_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its noise depends on how long a padded row is, which a packed one does not know."""

    def train(model: PeftModelForCausalLM) -> list[float]:
        settings = {"max_steps": 3, "logging_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
        arguments = TrainingArguments(tmp_path, neftune_noise_alpha=5.0, disable_tqdm=True, seed=1, **settings)
        trainer = Trainer(model, arguments, train_dataset=ROWS, data_collator=collate)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = train(make_peft())
    assert train(accelerate_peft(make_peft())) == expected
    assert "NEFTune's noise" in caplog.text
