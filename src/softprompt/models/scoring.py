"""Likelihoods of continuations, such as the labels of a task, after texts.

Owns the tree in which continuations share their beginnings, and the batching of many texts. Knows nothing of labels,
tasks or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.errors import SoftPromptError
from softprompt.models.embedding import embed
from softprompt.models.family import Batch, logits
from softprompt.models.packed import Tree
from softprompt.models.prompted import PromptedModel
from softprompt.models.transfer import to_device

# Tokens computed at one time: enough to fill the matrix products, little memory.
_AT_ONCE = 2048
# Logits held at one time, in numbers.
_MOST_LOGITS = 1 << 25


@torch.no_grad()
def score(
    model: PromptedModel,
    texts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    prompt_index: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Log-likelihood of each continuation after each text.

    A text is computed once, whatever the number of continuations: they hang on its end as a tree in which common
    beginnings are shared.

    Args:
        model: the base with its prompts.
        texts: B texts, token ids.
        continuations: C continuations, token ids, none of them empty.
        prompt_index: which prompt stands before each text; may be left out with at most one prompt.
        progress: called with the number of texts finished since the last call.

    Returns:
        `[B, C]` float32 on the CPU: the sum of the log-probabilities of each continuation's tokens.

    Raises:
        SoftPromptError: there is no continuation or an empty one, a text is empty and has no prompt before it, a token
            is not in the vocabulary, or prompt, text and the longest continuation do not fit the context.
    """
    if not continuations or not all(map(len, continuations)):
        raise SoftPromptError("every text needs continuations to score, each of at least one token")
    vocabulary = model.base.vocab_size
    check_tokens("text", texts, vocabulary)
    check_tokens("continuation", continuations, vocabulary)
    longest = max(map(len, continuations))
    index = model.check_rows([len(text) + longest for text in texts], prompt_index)
    vectors = model.vectors()
    model.check_not_empty(texts, index)
    answer = torch.empty(len(texts), len(continuations))
    branches = Branches(continuations)
    if model.logits_route == "packed":
        compute, times, extra = _score_tree, 1, len(branches.tree.tokens)
    else:
        compute, times, extra = _score_rows, len(continuations), sum(map(len, continuations))
    for rows in batch_by_tokens([times * len(text) + extra for text in texts]):
        chosen = [index[row] for row in rows]
        answer[rows] = compute(model, vectors, [texts[row] for row in rows], chosen, branches).cpu()
        if progress is not None:
            progress(len(rows))
    return answer


@torch.no_grad()
def final_states(
    model: PromptedModel,
    texts: Sequence[Sequence[int]],
    prompt_index: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    places: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """`[A, H]` float32 on the CPU: final hidden states of texts behind their prompts; see `score`.

    Args:
        model, texts, prompt_index, progress: as `score` takes them.
        places: of each text the tokens whose states are asked for, text after text; None: the last token's, or where
            the model's heads read what an encoder pools, that.

    Raises:
        SoftPromptError: a text is empty and has no prompt before it, a token is not in the vocabulary, or prompt and
            text do not fit the context.
    """
    check_tokens("text", texts, model.base.vocab_size)
    index = model.check_rows([len(text) for text in texts], prompt_index)
    model.check_not_empty(texts, index)
    vectors = model.vectors()
    if places is None:
        places = [[len(text) - 1] for text in texts]
    found = [torch.empty(0)] * len(texts)
    for rows in batch_by_tokens([len(text) for text in texts]):
        lengths = [len(texts[row]) for row in rows]
        batch = Batch(
            tokens=torch.tensor([token for row in rows for token in texts[row]], dtype=torch.long),
            lengths=lengths,
            prompt_of_text=[index[row] for row in rows],
            rows=torch.tensor([i for i, row in enumerate(rows) for _ in places[row]], dtype=torch.long),
            columns=torch.tensor([at for row in rows for at in places[row]], dtype=torch.long),
            read=model.read,
            pooling=model.pooling,
        )
        states = model.hidden(vectors, batch).float().cpu()
        for row, some in zip(rows, states.split([len(places[row]) for row in rows]), strict=True):
            found[row] = some
        if progress is not None:
            progress(len(rows))
    return torch.cat([torch.empty(0, model.base.hidden_size), *found])


@torch.no_grad()
def embeddings(model: PromptedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """`[B, H]` float32 on the CPU: the embedding of each text behind the model's prompt, where it has one.

    Raises:
        SoftPromptError: a text is empty, a token is not in the vocabulary, or prompt and text do not fit the context.
    """
    check_tokens("text", texts, model.base.vocab_size)
    if not all(map(len, texts)):
        raise SoftPromptError(f"row {[*map(len, texts)].index(0)} is empty: it has no embedding")
    model.check_rows([len(text) for text in texts], [0] * len(texts))
    vectors = model.vectors()
    found = torch.empty(len(texts), model.base.hidden_size)
    for rows in batch_by_tokens([len(text) for text in texts]):
        tokens = torch.tensor([token for row in rows for token in texts[row]], dtype=torch.long)
        lengths, k = [len(texts[row]) for row in rows], torch.zeros(len(rows), dtype=torch.long)
        found[rows] = embed(model, vectors, tokens, lengths, k).float().cpu()
    return found


def check_tokens(what: str, sequences: Sequence[Sequence[int]], vocabulary: int) -> None:
    for i, tokens in enumerate(sequences):
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise SoftPromptError(f"token {token} of {what} {i}: the base's vocabulary has {vocabulary} ids")


class Branches:
    """Continuations as a tree, in which common beginnings are shared.

    An edge is a token after a source, where source 0 is the end of the text and source i + 1 is node i; a node is an
    edge's token that has tokens after it, and so has to be computed.
    """

    def __init__(self, continuations: Sequence[Sequence[int]]) -> None:
        self.continuations = [tuple(c) for c in continuations]
        inner = sorted({c[:i] for c in self.continuations for i in range(1, len(c))}, key=lambda c: (len(c), c))
        number = {(): 0} | {beginning: i + 1 for i, beginning in enumerate(inner)}
        self.tree = Tree([c[-1] for c in inner], [number[c[:-1]] - 1 for c in inner])
        edges = sorted({c[: i + 1] for c in self.continuations for i in range(len(c))})
        self.sources = torch.tensor([number[e[:-1]] for e in edges])
        self.tokens = torch.tensor([e[-1] for e in edges])
        place = {edge: i for i, edge in enumerate(edges)}
        self.members = torch.zeros(len(edges), len(self.continuations))
        for i, c in enumerate(self.continuations):
            for j in range(len(c)):
                self.members[place[c[: j + 1]], i] = 1

    def likelihoods(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Log-likelihood of each continuation, `[B, C]`.

        Args:
            model: whose output head is used.
            hidden: `[B, 1 + E, H]` final hidden states: at each text's end, then at the tree's E nodes.
        """
        sources, tokens = self.sources.to(hidden.device), self.tokens.to(hidden.device)
        vocabulary = model.config.get_text_config().vocab_size
        parts = []
        for some in hidden.split(max(1, _MOST_LOGITS // (hidden.shape[1] * vocabulary))):
            scores = logits(model, some)
            parts.append(scores[:, sources, tokens] - scores.logsumexp(-1)[:, sources])
        found = torch.cat(parts)
        return found @ self.members.to(found)


def _score_tree(
    model: PromptedModel,
    vectors: Sequence[Tensor],
    texts: Sequence[Sequence[int]],
    prompt_of_text: Sequence[int],
    branches: Branches,
) -> Tensor:
    """`[B, C]` by one packed row of texts, each with the tree at its end."""
    lengths = torch.tensor([len(text) for text in texts])
    steps = torch.arange(len(branches.tree.tokens) + 1) - 1
    batch = Batch(
        tokens=torch.tensor([token for text in texts for token in text], dtype=torch.long),
        lengths=lengths.tolist(),
        prompt_of_text=prompt_of_text,
        rows=torch.arange(len(texts)).repeat_interleave(len(steps)),
        columns=(lengths[:, None] + steps).flatten(),
        tree=branches.tree,
    )
    return branches.likelihoods(model.base.model, model.hidden(vectors, batch).view(len(texts), len(steps), -1))


def _score_rows(
    model: PromptedModel,
    vectors: Sequence[Tensor],
    texts: Sequence[Sequence[int]],
    prompt_of_text: Sequence[int],
    branches: Branches,
) -> Tensor:
    """`[B, C]` where the base allows no packed row: each text once with each continuation."""
    pairs = [(row, text, c) for row, text in enumerate(texts) for c in branches.continuations]
    batch = Batch(
        tokens=torch.tensor([t for _, text, c in pairs for t in (*text, *c)], dtype=torch.long),
        lengths=[len(text) + len(c) for _, text, c in pairs],
        prompt_of_text=[prompt_of_text[row] for row, _, _ in pairs],
        rows=torch.tensor([i for i, (_, _, c) in enumerate(pairs) for _ in c]),
        columns=torch.tensor([len(text) + j - 1 for _, text, c in pairs for j in range(len(c))]),
    )
    targets = torch.tensor([token for _, _, c in pairs for token in c])
    hidden = model.hidden(vectors, batch)
    rows, targets = to_device([batch.rows, targets], hidden.device)
    likelihood = -model.nll(hidden, targets)
    return likelihood.new_zeros(len(pairs)).index_add_(0, rows, likelihood).view(len(texts), -1)


def batch_by_tokens(costs: Sequence[int]) -> Iterator[list[int]]:
    """Groups of rows of like cost, each group within `_AT_ONCE` tokens (or one row)."""
    group: list[int] = []
    total = 0
    for row in sorted(range(len(costs)), key=lambda row: costs[row]):
        if group and total + costs[row] > _AT_ONCE:
            yield group
            group, total = [], 0
        group.append(row)
        total += costs[row]
    if group:
        yield group
