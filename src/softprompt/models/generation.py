"""Free text from a base behind its prompts: batched greedy generation.

Owns the padding of many texts into the batches that Transformers' `generate` takes. Knows nothing of tasks or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import fill


@torch.no_grad()
def generate(
    model: PromptedModel,
    texts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Collection[int],
    prompt_index: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The most likely next token after each text, again and again.

    Args:
        model: the base with its prompts.
        texts: B texts, token ids.
        max_new_tokens: the most tokens to add to a text.
        ends: the tokens that end a text; they are not part of the answer. None at all: always `max_new_tokens`.
        prompt_index: which prompt stands before each text; may be left out with at most one prompt.
        progress: called with the number of texts finished since the last call.

    Returns:
        The new tokens of each text.

    Raises:
        SoftPromptError: prompt, text and answer do not fit the context, or a text is empty and has no prompt.
    """
    index = model.check_rows([len(text) + max_new_tokens for text in texts], prompt_index)
    model.check_not_empty(texts, index)
    vectors = model.vectors()
    answers: list[list[int]] = [[] for _ in texts]
    for rows in fill([len(text) + max_new_tokens for text in texts]):
        embedded = [_embed(model, vectors[index[row]], texts[row]) for row in rows]
        longest = max(map(len, embedded))
        inputs = embedded[0].new_zeros(len(rows), longest, embedded[0].shape[-1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=inputs.device)
        for i, one in enumerate(embedded):
            inputs[i, longest - len(one) :] = one
            mask[i, longest - len(one) :] = 1
        tokens = model.base.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
            use_cache=True,
        )
        for row, ids in zip(rows, tokens.tolist(), strict=True):
            answers[row] = list(takewhile(lambda token: token not in ends, ids))
        if progress is not None:
            progress(len(rows))
    return answers


def _embed(model: PromptedModel, prompt: Tensor, text: Sequence[int]) -> Tensor:
    words: Tensor = model.base.get_input_embeddings()(torch.tensor(text, dtype=torch.long, device=model.base.device))
    return torch.cat([prompt.to(words.dtype), words])
