"""The proof that a base can be computed behind prompts, and by which route: on this very model, in this very dtype.

A model has to compute the same from embeddings as from token ids, and a token from nothing that comes after it. A route
has to give the same logits and the same gradient of the prompts as the plain concatenation. In half precision two right
answers differ by how an attention kernel rounds, on SmolLM2-135M by as much as the gradient itself: there a route is
held against the concatenation in the attention that rounds as the route does, the model's own or Transformers' eager.

Owns the probe's tokens, the criterion and what has been found. Knows nothing of losses, labels or tasks.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from softprompt.bases.decoder import reach
from softprompt.bases.families import family_kind
from softprompt.errors import SoftPromptError
from softprompt.models.attention import detach
from softprompt.models.family import Batch, family_of, hidden_states, logits

logger = logging.getLogger(__name__)

_PROMPTS, _TEXTS = (4, 7), (20, 17, 20, 9)
_SHORTEST = 4  # tokens of a text in the smallest context that is probed
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Route:
    """The route found for a model, and why not a faster one ("" where it is the fastest)."""

    name: str
    reason: str = ""


@dataclass
class _Found:
    """What the probes of one model have shown so far: what speaks against each route."""

    with_gradient: dict[str, str]
    logits_only: dict[str, str]


_found: weakref.WeakKeyDictionary[PreTrainedModel, _Found] = weakref.WeakKeyDictionary()


def find_route(model: PreTrainedModel, *, gradient: bool = True) -> Route:
    """The fastest route that is exact for `model`.

    Args:
        model: the frozen base.
        gradient: whether the prompts' gradient has to be exact too; without it only the logits count.

    Raises:
        SoftPromptError: `model` cannot be computed behind prompts at all (see `check_model`).
    """
    reasons = []
    for name in family_of(model).routes:
        if not (reason := objection(model, name, gradient=gradient)):
            break
        reasons.append(f"{name}: {reason}")
    return Route(name, "; ".join(reasons))


def objection(model: PreTrainedModel, route: str, *, gradient: bool = True) -> str:
    """Why `route` is not exact for `model`; "" where a probe has shown that it is.

    The probe runs once for each model and route, with the gradient once that counts, and logs what it objects to.

    Raises:
        SoftPromptError: as `find_route`.
    """
    if model not in _found:
        check_model(model)
        plainest = family_of(model).routes[-1]
        _found[model] = _Found({plainest: ""}, {plainest: ""})
    found = _found[model]
    if route not in family_of(model).routes:
        return f"{type(model).__name__} has no {route} route"
    known = found.with_gradient if gradient else found.logits_only
    if route not in known:
        by_logits, known[route] = _compare(model, route, gradient)
        found.logits_only[route] = by_logits
        if by_logits:
            found.with_gradient[route] = by_logits
        if reason := known[route]:
            logger.warning("%s takes a slower route than %s (%s)", type(model).__name__, route, reason)
    return known[route]


def check_model(model: PreTrainedModel) -> None:
    """Make sure that a model computes behind vectors that are no words what it computes of token ids.

    Raises:
        SoftPromptError: the model has no output head; it cannot be fed with embeddings, or computes something else from
            them; its tokens see what comes after them, or padding; it changes its logits in a way that softprompt does
            not know; or its numbers are not finite.
    """
    name = type(model).__name__
    if family_kind(model.config).words and model.get_output_embeddings() is None:
        raise SoftPromptError(f"{name} has no output head: a causal language model is needed")
    try:
        with _attention(model, _kernels(model)[-1]):
            family_of(model).check(model)
    except SoftPromptError:
        raise
    except Exception as error:  # whatever a class that was not made for embeddings stumbles over
        raise SoftPromptError(f"{name} cannot be computed from embeddings: {_one_line(error)}") from error


def check_finite(model: PreTrainedModel, scores: Tensor) -> None:
    """Make sure that a model's logits are finite.

    Raises:
        SoftPromptError: they are not, with the reason.
    """
    if not scores.isfinite().all():
        raise SoftPromptError(
            f"{type(model).__name__} gives numbers that are not finite in {str(model.dtype).removeprefix('torch.')}: "
            + ("its weights hold such" if _damaged(model) else "use a dtype with a wider range, such as float32")
        )


def _damaged(model: PreTrainedModel) -> bool:
    known = (weight for weight in model.parameters() if type(weight) is torch.nn.Parameter and not weight.is_meta)
    return not all(weight.isfinite().all() for weight in known)


def probe(model: PreTrainedModel, seed: int = 0) -> tuple[list[Tensor], Batch]:
    """Two prompts that are no words and four texts behind them, asked at every place but the last.

    Args:
        model: whose words they are made of, and whose context they fit.
        seed: of the choice of words.

    Returns:
        Prompts `[4, H]` and `[7, H]`, float32, each vector half way between two words; and the texts.
    """
    device, count = model.device, model.config.get_text_config().vocab_size
    positions = reach(model.config).positions
    longest = max(_TEXTS) if positions is None else max(_SHORTEST, min(max(_TEXTS), positions - max(_PROMPTS)))
    lengths = [min(length, longest) for length in _TEXTS]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, count, (sum(lengths),), generator=generator)
    pairs = torch.randint(0, count, (2, sum(_PROMPTS)), generator=generator).to(device)
    prompts = model.get_input_embeddings()(pairs).detach().float().mean(0).split(_PROMPTS)
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    columns = torch.cat([torch.arange(length) for length in lengths]) - 1
    return list(prompts), Batch(tokens, lengths, [1, 0, 0, 1], rows, columns)


def _compare(model: PreTrainedModel, route: str, gradient: bool) -> tuple[str, str]:
    """What keeps `route` from the concatenation's logits, and from its logits and, if asked, gradient; "" for nothing.

    Leaves the model as it was where there is an objection.
    """
    prompts, batch = probe(model)
    reasons: list[tuple[str, str]] = []
    kernels = _kernels(model)
    if route == "packed" and model.device.type == "cpu":  # where it rounds as eager attention does: most likely equal
        kernels.reverse()
    for kernel in kernels:
        try:
            # Autocast, in which it may be needed first, rounds otherwise.
            with _attention(model, kernel), torch.autocast(model.device.type, enabled=False):
                routes = (route, family_of(model).routes[-1])
                found, wanted = (_answer(model, name, prompts, batch, gradient) for name in routes)
            by_logits = logit_distance(found[0], wanted[0])
            by_gradient = _distance(found[1], wanted[1]) if gradient else 0.0
            reasons.append((_verdict(model, by_logits), _verdict(model, max(by_logits, by_gradient))))
        except Exception as error:  # whatever a route meets in a model that it was not made for
            reasons.append((_one_line(error),) * 2)
        if not reasons[-1][1]:
            break
    best = min((logits for logits, _ in reasons), key=bool), min((both for _, both in reasons), key=bool)
    if best[0]:
        detach(model)
    return best


def objection_to_logits(model: PreTrainedModel, compute: Callable[[], Tensor], plain: Callable[[], Tensor]) -> str:
    """Why `compute` does not give the logits `[A, V]` that the plain way does; "" where it does."""
    reason = ""
    for kernel in _kernels(model):
        try:
            with torch.no_grad(), _attention(model, kernel):
                found, wanted = compute(), plain()
            reason = _verdict(model, logit_distance(found, wanted))
        except Exception as error:  # as in `_compare`
            reason = _one_line(error)
        if not reason:
            break
    return reason


def _answer(
    model: PreTrainedModel, route: str, prompts: Sequence[Tensor], batch: Batch, gradient: bool
) -> tuple[Tensor, Tensor]:
    """The logits `[A, V]` at the places asked for, and if asked the prompts' gradient `[P, H]` of a loss on them."""
    leaves = [prompt.clone().requires_grad_(gradient) for prompt in prompts]
    with torch.set_grad_enabled(gradient):
        scores = logits(model, hidden_states(route, model, leaves, batch))
        if not gradient:
            return scores, scores[:0]
        targets = batch.tokens.to(scores.device) % scores.shape[-1]
        loss = functional.cross_entropy(scores, targets, reduction="sum")
        return scores.detach(), torch.cat(torch.autograd.grad(loss, leaves))


def _kernels(model: PreTrainedModel) -> list[str | None]:
    """The attentions in which a route may equal the concatenation; None is the model's own."""
    return [None, "eager"] if model.dtype in _HALF and model._can_set_attn_implementation() else [None]


@contextmanager
def _attention(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Within it a model computes with the attention of that name; None changes nothing."""
    own = model.config.get_text_config()._attn_implementation
    if name is not None:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if name is not None:
            model.set_attn_implementation(own)


def _verdict(model: PreTrainedModel, distance: float) -> str:
    return "" if distance <= tolerance(model) else f"{distance:.1g} away from the concatenation"


def tolerance(model: PreTrainedModel) -> float:
    return 0.1 if model.dtype in _HALF else 1e-3


def _distance(value: Tensor, expected: Tensor) -> float:
    """Relative distance; infinite for NaN."""
    distance = float((value - expected).norm() / expected.norm().clamp(min=1e-12))
    return distance if distance == distance else float("inf")


def logit_distance(value: Tensor, expected: Tensor) -> float:
    """The distance of logits `[A, V]`, without what all places have in common.

    That is most of their size in a trained model, so that even a wrong route's would be near.
    """
    usual = expected.mean(0)
    return _distance(value - usual, expected - usual)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {str(error)[:200]}".split())
