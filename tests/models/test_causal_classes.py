"""Every causal class of Transformers, tiny and random: computed rightly, or refused in one line."""

from __future__ import annotations

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from softprompt.bases.decoder import NO_TOKEN, Decoder
from softprompt.bases.reading import check_supported
from softprompt.errors import SoftPromptError
from softprompt.models.family import logits
from softprompt.models.state import Span, StatePool
from tests.models.based import with_prompts
from tests.models.batches import distance, make_example
from tests.models.tiny import VOCABULARY, WIDTH, tiny_config, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # what a class warns of when it is built is not the question
EXAMPLE = make_example([9, 1, 7], [6, 3], [0, 1, 0], ["left", "right", "right"], label_share=1.0, width=WIDTH)
NOTHING = torch.zeros(0, dtype=torch.long)

# Kinds that must be right: a refusal is right for any class but these.
RIGHT = {
    *("llama", "gpt2", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "mistral"),
    *("phi", "phi3", "opt", "bloom", "falcon", "mpt", "gptj", "gpt_neox", "mamba", "bamba", "zamba", "rwkv", "ctrl"),
    *("llama4_text", "mllama", "gpt_oss", "deepseek_v2", "deepseek_v3", "jamba", "recurrent_gemma", "openai-gpt"),
}
# Kinds that must not pass: they see what comes after a token, or need the ids of what is no token.
REFUSED = {"bert", "xlnet", "bert-generation", "deepseek_v4"}


@pytest.mark.long
@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_right_or_refused_in_one_line(kind):
    try:
        check(kind, torch.float32)
    except AssertionError:  # some of these random models turn float32's rounding into errors of a third
        check(kind, torch.float64)


def check(kind, dtype):
    model = build(kind, dtype)
    prompts = EXAMPLE.parameters(dtype)
    prompted = accepted(lambda: with_prompts(model, prompts)) if model is not None else None
    assert prompted is not None or kind not in RIGHT
    if prompted is None:
        return
    assert kind not in REFUSED
    answer = prompted(**EXAMPLE.batch, return_logits=True)
    answer.loss.backward()
    wanted, grads = plain(model)
    assert distance([answer.logits], [wanted]) < 1e-3
    assert distance([p.grad for p in prompts], grads) < 1e-3
    check_zero_shot(model)
    if prompted.route == "packed" and (pool := accepted(lambda: StatePool(model, 1 << 25))) is not None:
        check_kept_states(model, pool)


def accepted(make):
    """What `make` gives, or None where it is refused, which takes one line."""
    try:
        return make()
    except SoftPromptError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return None


def build(kind, dtype):
    """A tiny model; None where its configuration is refused."""
    try:
        config = tiny_config(kind)
        if accepted(lambda: check_supported(kind, config) or True) is None:
            return None
        model = tiny_model(config).to(dtype)
        if dtype == torch.float64:
            model.set_experts_implementation("eager")  # the grouped kernel knows no float64
        return model
    except Exception as error:  # a configuration that asks for more than sizes
        if kind in RIGHT | REFUSED:
            raise
        return pytest.skip(f"cannot be built tiny: {' '.join(str(error).split())[:100]}")


def plain(model) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits at the labels and the prompts' gradients, row by row: each text behind its prompt, nothing padded."""
    leaves = [p.detach().clone().requires_grad_() for p in EXAMPLE.parameters(model.dtype)]
    scores, targets = [], []
    for ids, present, labels, k in zip(
        EXAMPLE.input_ids, EXAMPLE.attention_mask.bool(), EXAMPLE.labels, EXAMPLE.prompt_index.tolist(), strict=True
    ):
        found = hidden_of(model, leaves[k], ids[present])
        wanted = labels[present]
        scores.append(logits(model, found[len(leaves[k]) - 1 : -1])[wanted != -100])
        targets.append(wanted[wanted != -100])
    loss = torch.nn.functional.cross_entropy(torch.cat(scores), torch.cat(targets))
    return torch.cat(scores).detach(), list(torch.autograd.grad(loss, leaves))


def hidden_of(model, prompt: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    whole = torch.cat([prompt, model.get_input_embeddings()(ids)])
    tokens = torch.cat([torch.full((len(prompt),), NO_TOKEN), ids])
    return Decoder.of(model)(whole[None], tokens[None])[0]


def check_zero_shot(model) -> None:
    ids = torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        answer = with_prompts(model, [])(ids, labels=ids, return_logits=True)
        expected = model(input_ids=ids, use_cache=False).logits[:, :-1]
    assert distance([answer.logits], [expected.reshape(-1, expected.shape[-1])]) < 1e-3


def check_kept_states(model, pool: StatePool) -> None:
    """Two texts behind one kept prompt, each in two steps."""
    prompt = EXAMPLE.parameters(model.dtype)[0].detach()
    texts = [torch.arange(2, 9), torch.arange(20, 24)]
    kept, *own = [pool.allocate(n) for n in (len(prompt), *map(len, texts))]
    first = pool.compute(
        [Span(prompt, NOTHING, kept), *(Span(t[:2], kept, o[:2]) for t, o in zip(texts, own, strict=True))]
    )[1:]
    spans = [Span(t[2:], torch.cat([kept, o[:2]]), o[2:]) for t, o in zip(texts, own, strict=True)]
    for text, before, after in zip(texts, first, pool.compute(spans), strict=True):
        with torch.no_grad():
            expected = hidden_of(model, prompt, text)[len(prompt) :]
        assert distance([torch.cat([before, after])], [expected]) < 1e-3
