"""The engine for more than one GPU and more than one machine: vLLM, fed with prompt embeddings.

A request is the prompt's rows followed by the text's ids, which vLLM embeds itself. Its prefix cache, whose keys hash
the rows, keeps the prompts' keys and values in blocks; only a block that a prompt fills is shared.

Owns the translation of requests, answers and errors, the bounded queue and the time limit. Knows nothing of names,
templates or HTTP, and leaves batching, memory and parallelism to vLLM.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.bases.base import dtype_name, suppressed_ids
from softprompt.bases.load import load_outline
from softprompt.bases.machine import fast_dtype
from softprompt.errors import SoftPromptError
from softprompt.models.scoring import check_tokens
from softprompt.prompts.prompt import SoftPrompt
from softprompt.serving.engine import QueueFullError, Sampling, StoppedError, TimeLimitError, Token, Weight

# The smallest blocks that vLLM's attention takes: what a prompt doesn't fill is computed for every request.
_BLOCK = {"cpu": 32}
_BLOCK_ELSEWHERE = 16
# On a CPU vLLM would take nine tenths of the machine's memory, and fail where others use more than the rest.
_CPU_CACHE_BYTES = 1 << 30
# Flags that this engine sets, or that its own settings stand for.
_OURS = {
    "model": "name the base instead",
    "enable_prompt_embeds": "it is always on",
    "enable_prefix_caching": "it is always on",
    "skip_tokenizer_init": "vLLM gets token ids only",
    "generation_config": "requests say how to sample",
    "logprobs_mode": "log-probabilities are those before all processing",
    "max_num_queued_reqs": "use max_waiting",
    "max_num_queued_tokens": "use max_waiting",
}
# vLLM would take a lower temperature for this one.
_LEAST_TEMPERATURE = 0.01
# Tokens whose embeddings are sent to vLLM at the start, to see that it computes with them as Transformers does.
_PROBES = 8
_PROBE_CANDIDATES = 64
# How far apart, in nats, the candidates' log-probabilities may be on average. bfloat16 rows make 0.01 of difference; a
# scale left out, or applied twice, 0.2 and much more.
_PROBE_TOLERANCE = 0.1
_SHUTDOWN_SECONDS = 30.0


@dataclass(eq=False)
class _Request:
    """A request that has been let in; it may be several of vLLM's."""

    prompt: SoftPrompt | None
    ids: Sequence[int]
    deadline: float

    @property
    def virtual(self) -> int:
        """P, or 0 for no prompt."""
        return 0 if self.prompt is None else self.prompt.num_virtual_tokens


class VllmEngine:
    """Answers requests through vLLM's `AsyncLLM`; see `Engine` for the methods that take requests.

    `base` carries the tokenizer, the configuration and the identity, but no weights: vLLM holds them. vLLM runs in
    processes that it spawns: a script that starts the engine needs `if __name__ == "__main__":`.

    Args:
        base: what `load_base` takes. A GGUF file needs vLLM's own plugin for it.
        max_waiting: requests that may wait for their first token; one more is refused.
        time_limit: seconds that a request may take, waiting included.
        flags: vLLM's own engine arguments, such as `tensor_parallel_size`, `pipeline_parallel_size`,
            `data_parallel_size`, `gpu_memory_utilization`, `max_model_len`, `dtype`. Defaults other than vLLM's: the
            fastest `dtype` as `load_base` chooses it, `block_size` 32 on a CPU and 16 elsewhere, no statistics in the
            log; on a CPU also `enforce_eager` and 1 GiB of `kv_cache_memory_bytes`.

    Raises:
        SoftPromptError: vLLM is not installed, a flag is not one of vLLM's or is set by the engine, a setting is not
            above 0, or the base cannot be loaded.
    """

    name = "vllm"

    def __init__(
        self, base: str | os.PathLike[str], *, max_waiting: int = 1024, time_limit: float = 60.0, **flags: Any
    ) -> None:
        for key, value in {"max_waiting": max_waiting, "time_limit": time_limit}.items():
            if not value > 0:
                raise SoftPromptError(f"{key} is {value}: it must be above 0")
        self.failed = asyncio.Event()
        self.max_waiting, self._time_limit = max_waiting, time_limit
        _check_flags(flags)
        options = {key: flags[key] for key in ("revision", "trust_remote_code") if key in flags}
        self.base = load_outline(base, **options)
        if not self.base.family.words:
            raise SoftPromptError(f"base {base!r} is an encoder: no engine serves it")
        self._suppressed = suppressed_ids(self.base.model)
        self._probe_ids = torch.arange(_PROBES) * self.base.vocab_size // _PROBES
        self._probe_rows = self.base.embed(self._probe_ids)
        assert self.base.identity  # worked out now, and kept
        is_gguf = self.base.name.lower().endswith(".gguf") and os.path.isfile(os.path.expanduser(self.base.name))
        source = os.path.expanduser(self.base.name) if is_gguf else self.base.model.name_or_path
        self.base.model.to("meta")  # type: ignore[arg-type]  # transformers' wrapper hides the argument's type
        self._flags = _complete(flags) | {
            "model": source,
            "enable_prompt_embeds": True,
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
        }
        self._engine: Any = None
        self._stopping = False
        self._waiting: set[_Request] = set()
        self._running: set[_Request] = set()
        self._quiet = asyncio.Event()
        self._text_tokens = self._new_tokens = self._hits = self._misses = 0

    async def start(self) -> None:
        """Begin to answer. Called once; it takes half a minute and more.

        Raises:
            StoppedError: it has been called before.
            SoftPromptError: vLLM cannot start with this base and these flags, or does not compute with embeddings as
                Transformers does.
        """
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        if self._engine is not None or self._stopping:
            raise StoppedError("this engine has been started before: make a new one")
        try:
            self._engine = await asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(**self._flags))
        except Exception as error:  # whatever vLLM raises for flags, bases, memory and devices that don't do
            raise SoftPromptError(f"vLLM cannot start with base {self.base.name!r}: {error}") from error
        try:
            await self._check_embeddings()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        self._stopping = True
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if self._waiting or self._running:
            with suppress(asyncio.TimeoutError):  # a client may never fetch the rest of its answer
                await asyncio.wait_for(self._quiet.wait(), self._time_limit)
        # Not in a thread: vLLM's tasks in this loop would find its processes gone, and log that as a failure.
        engine.shutdown(_SHUTDOWN_SECONDS)
        await asyncio.sleep(0)  # lets those tasks end

    async def generate(
        self, prompt: SoftPrompt | None, ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[Token, None]:
        from vllm.sampling_params import RequestOutputKind

        with self._admit(prompt, ids, sampling.max_tokens) as (request, engine):
            params = self._params(
                output_kind=RequestOutputKind.DELTA, **self._translate(sampling, engine, prompt is not None)
            )
            inputs = self._inputs(request, engine, unseen=sampling.repetition_penalty != 1)
            async with aclosing(self._outputs(request, engine, inputs, params)) as outputs:
                async for output in outputs:
                    # When the time is up, what is there is the answer.
                    over = not output.finished and time.monotonic() > request.deadline
                    for token in _tokens(output.outputs[0], sampling.logprobs, over):
                        self._new_tokens += 1
                        yield token
                    if over and output.outputs[0].token_ids:
                        return

    async def classify(
        self, prompt: SoftPrompt | None, ids: Sequence[int], continuations: Sequence[Sequence[int]] | None
    ) -> list[float]:
        if continuations is None:
            raise SoftPromptError("answers by a head are not supported by the vLLM engine: use --engine local")
        from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS

        if not continuations or not all(map(len, continuations)):
            raise SoftPromptError("a classification needs continuations, each of at least one token")
        check_tokens("continuation", continuations, self.base.vocab_size)
        # What may follow each beginning: a tree, of which each inner node is a request of vLLM's for one token.
        following: dict[tuple[int, ...], dict[int, None]] = {}
        for continuation in continuations:
            for i, token in enumerate(continuation):
                following.setdefault(tuple(continuation[:i]), {})[token] = None
        with self._admit(prompt, ids, max(map(len, continuations))) as (request, engine):
            asked = []
            for beginning, after in following.items():
                candidates = list(after)
                for i in range(0, len(candidates), MAX_LOGPROB_TOKEN_IDS):
                    part = candidates[i : i + MAX_LOGPROB_TOKEN_IDS]
                    asked.append(asyncio.ensure_future(self._weigh(request, engine, beginning, part)))
            try:
                weighed = await asyncio.gather(*asked)
            finally:  # one has failed, or nobody waits any more: the others need not go on
                for task in asked:
                    task.cancel()
        logprobs = {edge: value for part in weighed for edge, value in part.items()}
        return [sum(logprobs[tuple(c[: i + 1])] for i in range(len(c))) for c in continuations]

    async def weigh(self, prompt: SoftPrompt | None, ids: Sequence[int], top: int) -> list[Weight]:
        raise SoftPromptError("echo with logprobs is not supported by the vLLM engine: use --engine local")

    async def states(self, prompt: SoftPrompt | None, ids: Sequence[int]) -> Tensor:
        raise SoftPromptError("hidden states, as tags, spans and embeddings need, are not supported by the vLLM engine")

    async def warm(self, prompt: SoftPrompt) -> None:
        with self._admit(prompt, [], 1) as (request, engine):
            await self._last_output(request, engine, self._inputs(request, engine), self._params(max_tokens=1))

    def figures(self) -> Mapping[str, float]:
        """As `Engine` says; a hit is a request of vLLM's that found every block which its prompt fills.

        How many states are in the cache and how large they are is not known: NaN. A classification asks vLLM once for
        each inner node of the labels' tree.
        """
        return {
            "requests_waiting": len(self._waiting),
            "requests_running": len(self._running),
            "text_tokens_total": self._text_tokens,
            "new_tokens_total": self._new_tokens,
            "state_hits_total": self._hits,
            "state_misses_total": self._misses,
            "states_resident": math.nan,
            "state_bytes": math.nan,
        }

    @contextmanager
    def _admit(self, prompt: SoftPrompt | None, ids: Sequence[int], to_follow: int) -> Iterator[tuple[_Request, Any]]:
        """A request that has been checked, and counts until the end of the block; and vLLM's engine."""
        request = _Request(prompt, ids, time.monotonic() + self._time_limit)
        engine = self._engine
        if engine is None or self._stopping:
            raise StoppedError("the engine is not running")
        self._check(request, to_follow, engine.model_config.max_model_len)
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(f"{len(self._waiting)} requests wait: try again later", retry_after=1.0)
        self._waiting.add(request)
        self._quiet.clear()
        try:
            yield request, engine
        finally:
            self._waiting.discard(request)
            self._running.discard(request)
            if not self._waiting and not self._running:
                self._quiet.set()

    def _check(self, request: _Request, to_follow: int, limit: int) -> None:
        if request.prompt is not None:
            request.prompt.check_base(self.base)
        check_tokens("text", [request.ids], self.base.vocab_size)
        text = len(request.ids)
        if not request.virtual and not text:
            raise SoftPromptError("the text is empty and has no prompt: nothing to predict from")
        if request.virtual + text + to_follow > limit:
            raise SoftPromptError(
                f"{request.virtual} virtual tokens, {text} of text and {to_follow} to follow are "
                f"{request.virtual + text + to_follow}: the context holds {limit}"
            )

    def _translate(self, sampling: Sampling, engine: Any, behind_prompt: bool) -> dict[str, Any]:
        """vLLM's words for `sampling`; what vLLM would do otherwise is refused."""
        if sampling.no_repeat_ngram_size:
            raise SoftPromptError("vLLM has no no_repeat_ngram_size: leave it out, or use the local engine")
        if any(len(word) != 1 for word in sampling.bad_words):
            raise SoftPromptError(
                "vLLM does not see where in the text a word of several tokens begins: bad_words must be single tokens "
                "here; the local engine takes them all"
            )
        if 0 < sampling.temperature < _LEAST_TEMPERATURE:
            raise SoftPromptError(
                f"temperature is {sampling.temperature}: vLLM takes 0, or {_LEAST_TEMPERATURE} and above"
            )
        if sampling.repetition_penalty != 1 and behind_prompt and engine.vllm_config.use_v2_model_runner:
            raise SoftPromptError(
                "vLLM's newer model runner takes virtual tokens for token 0, which repetition_penalty would make "
                "rarer: leave it out, or start the server with VLLM_USE_V2_MODEL_RUNNER=0"
            )
        # What ends a text is no bad word, as in Transformers.
        forbidden = ({token for (token,) in sampling.bad_words} - self.base.end_ids) | self._suppressed
        return {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # Not negative: vLLM would take -1 for no seed.
            "seed": None if sampling.seed is None else sampling.seed % (1 << 63),
            "repetition_penalty": sampling.repetition_penalty,
            "logit_bias": dict.fromkeys(forbidden, -math.inf) or None,
            "logprobs": sampling.logprobs,
            "stop_token_ids": None if sampling.ignore_eos else sorted(self.base.end_ids),
        }

    def _params(self, **settings: Any) -> Any:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError

        try:
            # What ends a text is always said by `stop_token_ids`.
            return SamplingParams(**{"temperature": 0.0, "detokenize": False, "ignore_eos": True, **settings})
        except VLLMClientError as error:
            raise SoftPromptError(str(error)) from error

    def _inputs(self, request: _Request, engine: Any, following: Sequence[int] = (), *, unseen: bool = False) -> Any:
        """What vLLM computes: the prompt's rows, the text's ids and those `following`.

        Args:
            unseen: give virtual tokens the id after the vocabulary's last, which penalties take for padding. Anything
                else in vLLM is safer off with an id that exists.
        """
        from vllm.inputs import tokens_input

        ids = [*request.ids, *following]
        if request.prompt is None:
            return tokens_input(ids)
        filler = engine.model_config.get_vocab_size() if unseen else 0
        return _mixed(request.prompt.embeddings, ids, engine.model_config.dtype, filler)

    async def _outputs(self, request: _Request, engine: Any, inputs: Any, params: Any) -> AsyncGenerator[Any, None]:
        """vLLM's answers to one of its requests, up to the last; its errors become ours. Closing it cancels."""
        from vllm.exceptions import VLLMClientError, VLLMServerError

        stream = engine.generate(inputs, params, uuid.uuid4().hex)
        first, deadline = True, request.deadline
        try:
            while True:
                output = await asyncio.wait_for(anext(stream), max(0.0, deadline - time.monotonic()))
                if output.outputs[0].finish_reason in ("abort", "error"):
                    raise StoppedError("vLLM has given the request up: the engine is stopping, or its log says why")
                if first:
                    self._count(request, engine, output.num_cached_tokens or 0)
                    first, deadline = False, deadline + self._time_limit  # it is for the next token to end the answer
                yield output
                if output.finished:
                    return
        except asyncio.TimeoutError:
            raise TimeLimitError(f"the request took more than {self._time_limit:g} s (--time-limit)") from None
        except VLLMClientError as error:
            raise SoftPromptError(str(error)) from error
        except VLLMServerError as error:
            if engine.errored:
                self.failed.set()
            raise StoppedError(f"vLLM has failed, and its log says why: {error}") from error
        finally:
            await stream.aclose()

    async def _last_output(self, request: _Request, engine: Any, inputs: Any, params: Any) -> Any:
        async with aclosing(self._outputs(request, engine, inputs, params)) as outputs:
            return [output async for output in outputs][-1]

    async def _weigh(
        self, request: _Request, engine: Any, beginning: tuple[int, ...], candidates: list[int]
    ) -> dict[tuple[int, ...], float]:
        """Log-probability of each candidate after prompt, text and `beginning`, by the tokens that lead to it."""
        params = self._params(max_tokens=1, logprob_token_ids=candidates)
        output = await self._last_output(request, engine, self._inputs(request, engine, beginning), params)
        found = output.outputs[0].logprobs[0]
        return {(*beginning, token): found[token].logprob for token in candidates}

    def _count(self, request: _Request, engine: Any, cached: int) -> None:
        """The first answer to one of vLLM's requests has come."""
        if request in self._waiting:
            self._waiting.remove(request)
            self._running.add(request)
        self._text_tokens += len(request.ids) - max(0, cached - request.virtual)
        if request.prompt is not None:
            block = engine.vllm_config.cache_config.block_size
            if 0 < request.virtual // block * block <= cached:
                self._hits += 1
            else:
                self._misses += 1

    async def _check_embeddings(self) -> None:
        """Refuse a base that vLLM embeds otherwise than Transformers, for its prompts would mean something else."""
        engine, vocabulary = self._engine, self.base.vocab_size
        candidates = sorted({i * vocabulary // _PROBE_CANDIDATES for i in range(_PROBE_CANDIDATES)})
        request = _Request(None, [], time.monotonic() + self._time_limit)
        rows = _mixed(self._probe_rows, [], engine.model_config.dtype, 0)
        found = []
        for inputs in (self._inputs(request, engine, self._probe_ids.tolist()), rows):
            params = self._params(max_tokens=1, logprob_token_ids=candidates)
            output = await self._last_output(request, engine, inputs, params)
            logprobs = output.outputs[0].logprobs[0]
            found.append(torch.tensor([logprobs[token].logprob for token in candidates]))
        apart = (found[0] - found[1]).abs().mean()
        if not apart <= _PROBE_TOLERANCE:
            raise SoftPromptError(
                f"vLLM does not compute with the embeddings of {type(self.base.model).__name__} as Transformers does, "
                "so that a prompt would mean something else: use the local engine"
            )


def _check_flags(flags: Mapping[str, Any]) -> None:
    # Before vLLM is imported, which reads these. It would report its use to its makers, and write to stdout, which
    # belongs to the command.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import AsyncEngineArgs
    except ImportError as error:
        raise SoftPromptError(
            f"the vLLM engine needs vLLM, which cannot be imported ({error}): pip install 'softprompt[vllm]'"
        ) from error
    known = {field.name for field in fields(AsyncEngineArgs)}
    for flag in flags:
        if flag in _OURS:
            raise SoftPromptError(f"{flag} cannot be set here: {_OURS[flag]}")
        if flag not in known:
            raise SoftPromptError(f"{flag} is none of vLLM's engine arguments")


def _complete(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with this engine's own defaults."""
    from vllm.platforms import current_platform

    kind: str = current_platform.device_type
    defaults: dict[str, Any] = {"block_size": _BLOCK.get(kind, _BLOCK_ELSEWHERE), "disable_log_stats": True}
    if kind == "cpu":
        # Compiling takes two minutes, at many a start anew, and the answers then come no faster.
        defaults["enforce_eager"] = True
        if "gpu_memory_utilization" not in flags:
            defaults["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    chosen = {**defaults, **flags}
    if chosen.get("dtype", "auto") == "auto":  # vLLM's own "auto" makes float32 weights half precision
        chosen["dtype"] = dtype_name(fast_dtype(torch.device(kind)))
    return chosen


def _mixed(rows: Tensor, ids: Sequence[int], dtype: torch.dtype, filler: int) -> Any:
    """Input of vLLM's that is embedded already for the first places, and ids for the others.

    Args:
        rows: `[P, H]` embeddings.
        ids: what follows them.
        dtype: vLLM's.
        filler: the id that stands for a row.
    """
    from vllm.inputs import embeds_input

    embeddings = torch.zeros(len(rows) + len(ids), rows.shape[1], dtype=dtype)
    embeddings[: len(rows)] = rows
    return embeds_input(
        embeddings,
        prompt_token_ids=[filler] * len(rows) + list(ids),
        is_token_ids=[False] * len(rows) + [True] * len(ids),
    )


def _tokens(output: Any, logprobs: int | None, over: bool) -> Iterator[Token]:
    """The new tokens of one of vLLM's answers, the last one with why it is the last: where it is `over`, the length."""
    for i, token in enumerate(output.token_ids):
        finish: Literal["stop", "length"] | None = None
        if i == len(output.token_ids) - 1:
            finish = "length" if over else output.finish_reason
        if logprobs is None:
            yield Token(token, finish=finish)
            continue
        # The token itself comes with the likeliest ones, whether or not it is among them.
        found = {one: entry.logprob for one, entry in output.logprobs[i].items()}
        top = sorted(found.items(), key=lambda item: item[1], reverse=True)[:logprobs]
        yield Token(token, found[token], tuple(top), finish)
