"""The vLLM engine against the plain reference, in float32; `make test-vllm` runs it where vLLM is."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import softprompt as sp
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from softprompt.serving.engine import QueueFullError, Sampling, StoppedError, TimeLimitError
from softprompt.serving.vllm import VllmEngine
from tests.conftest import make_tokenizer

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` sets up an environment with it", allow_module_level=True)

# What vLLM and what it imports say about themselves and each other is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")

LABELS = [[5, 6], [5, 7, 8], [9]]
# Heads of 32: the smallest that vLLM's attention takes on a CPU.
SIZE = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    return save(LlamaForCausalLM(LlamaConfig(**SIZE)), folder)


class Running:
    """A started engine with the reference that its answers are compared with."""

    def __init__(self, name: str | Path, **flags: Any) -> None:
        self.base = sp.load_base(name, dtype="float32", device="cpu")
        self.loop = asyncio.new_event_loop()
        settings = {"dtype": "float32", "max_num_seqs": 32, "kv_cache_memory_bytes": 1 << 28}
        self.engine = VllmEngine(name, **{**settings, **flags})
        self.run(self.engine.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 120))

    def close(self) -> None:
        self.run(self.engine.stop())
        self.loop.close()

    def prompt(self, length: int, seed: int = 0) -> sp.SoftPrompt:
        return sp.SoftPrompt.random(self.base, length, seed=seed)

    def ids(self, length: int, seed: int = 0) -> list[int]:
        return torch.randint(2, 258, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    async def answer(self, prompt: sp.SoftPrompt | None, ids: list[int], **sampling: Any) -> list[int]:
        return [token.id async for token in self.engine.generate(prompt, ids, Sampling(**sampling))]

    def greedy(self, prompt: sp.SoftPrompt | None, ids: list[int], count: int) -> list[int]:
        """The reference: Transformers' own generate, alone; the end-of-text token included where it came."""
        ends = self.base.end_ids
        found = generate(self.prompted(prompt), [ids], max_new_tokens=count, ends=ends)[0]
        return found if len(found) == count else [*found, *ends]

    def likelihoods(
        self, prompt: sp.SoftPrompt | None, ids: list[int], labels: list[list[int]] = LABELS
    ) -> list[float]:
        return score(self.prompted(prompt), [ids], labels)[0].tolist()

    def prompted(self, prompt: sp.SoftPrompt | None) -> PromptedModel:
        return PromptedModel(self.base, [] if prompt is None else [prompt])


@contextmanager
def running(name: str | Path, **flags: Any) -> Iterator[Running]:
    it = Running(name, **flags)
    try:
        yield it
    finally:
        it.close()


@contextmanager
def changed(engine: VllmEngine, **attributes: Any) -> Iterator[None]:
    """The engine with other settings, for it takes half a minute to start another one."""
    before = {name: getattr(engine, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(engine, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(engine, name, value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Iterator[Running]:
    with running(save_llama(tmp_path_factory.mktemp("llama"))) as it:
        yield it


class TestFlags:
    def test_unknown_ones_are_refused(self):
        with pytest.raises(SoftPromptError, match="tensor_paralel_size is none of vLLM's"):
            VllmEngine("smollm2-135m", tensor_paralel_size=2)

    @pytest.mark.parametrize("flag", ["model", "enable_prefix_caching", "logprobs_mode"])
    def test_those_of_the_engine_are_refused(self, flag):
        with pytest.raises(SoftPromptError, match=f"{flag} cannot be set here"):
            VllmEngine("smollm2-135m", **{flag: "x"})

    @pytest.mark.parametrize("setting", [{"max_waiting": 0}, {"time_limit": 0.0}, {"time_limit": float("nan")}])
    def test_settings_are_above_0(self, setting):
        with pytest.raises(SoftPromptError, match="must be above 0"):
            VllmEngine("smollm2-135m", **setting)

    def test_there_must_be_such_a_base(self, tmp_path):
        with pytest.raises(SoftPromptError, match=r"without a config\.json"):
            VllmEngine(tmp_path)

    def test_defaults(self, tmp_path):
        """The smallest blocks that vLLM has on a CPU, no half precision of vLLM's own choice; what is said, holds."""
        folder = save_llama(tmp_path)
        chosen, said = VllmEngine(folder)._flags, VllmEngine(folder, block_size=64, dtype="float16")._flags
        assert (chosen["block_size"], chosen["enable_prefix_caching"]) == (32, True)
        assert chosen["dtype"] in ("float32", "bfloat16")
        assert (said["block_size"], said["dtype"]) == (64, "float16")

    def test_a_value_that_vllm_does_not_take_is_one_line(self, tmp_path):
        engine = VllmEngine(save_llama(tmp_path), dtype="float31")
        with pytest.raises(SoftPromptError, match=r"vLLM cannot start.*float31"):
            asyncio.run(engine.start())


class TestAnswers:
    def test_a_mixed_batch_equals_one_by_one(self, tiny):
        """Generations and classifications behind prompts of all lengths and none, at one time."""
        prompts = [None, *(tiny.prompt(length, length) for length in (1, 7, 32, 70))]
        requests = [(prompts[i % 5], tiny.ids(1 + i % 7 * 6, i)) for i in range(20)]

        async def ask():
            return await asyncio.gather(
                *(tiny.answer(prompt, ids, max_tokens=2 + i % 6) for i, (prompt, ids) in enumerate(requests)),
                *(tiny.engine.classify(prompt, ids, LABELS) for prompt, ids in requests),
            )

        expected = torch.tensor([tiny.likelihoods(prompt, ids) for prompt, ids in requests])
        for _ in range(2):  # the second time from the prefix cache
            found = tiny.run(ask())
            assert found[:20] == [tiny.greedy(p, ids, 2 + i % 6) for i, (p, ids) in enumerate(requests)]
            torch.testing.assert_close(torch.tensor(found[20:]), expected, rtol=0, atol=1e-3)

    def test_an_empty_text_is_answered_from_the_prompt(self, tiny):
        prompt = tiny.prompt(40, 5)
        assert tiny.run(tiny.answer(prompt, [], max_tokens=4)) == tiny.greedy(prompt, [], 4)
        found = tiny.run(tiny.engine.classify(prompt, [], LABELS))
        assert found == pytest.approx(tiny.likelihoods(prompt, []), abs=1e-3)

    def test_labels_of_more_candidates_than_vllm_weighs_at_once(self, tiny):
        labels = [[token] for token in range(2, 202)] + [[3, token] for token in range(2, 152)]
        prompt, ids = tiny.prompt(9, 1), tiny.ids(5)
        found = tiny.run(tiny.engine.classify(prompt, ids, labels))
        assert found == pytest.approx(tiny.likelihoods(prompt, ids, labels), abs=1e-3)

    def test_any_of_the_ends_stops_and_what_is_suppressed_never_comes(self, tiny, monkeypatch):
        ids = tiny.ids(6, 2)
        plain = tiny.run(tiny.answer(None, ids, max_tokens=9, ignore_eos=True))
        second = next(token for token in plain if plain.index(token) > 1)
        monkeypatch.setitem(tiny.engine.base.__dict__, "end_ids", frozenset({0, second}))
        assert tiny.run(tiny.answer(None, ids, max_tokens=9)) == plain[: plain.index(second) + 1]
        monkeypatch.setattr(tiny.engine, "_suppressed", frozenset({second}))
        assert second not in tiny.run(tiny.answer(None, ids, max_tokens=9, ignore_eos=True))

    def test_it_stops_at_the_end_of_text_unless_told_not_to(self, tiny):
        """A text after which the reference ends early; found by trying, for the base is random."""
        ids, expected = next(
            (ids, found) for ids in map(tiny.ids, [6] * 500, range(500)) if len(found := tiny.greedy(None, ids, 8)) < 8
        )

        async def tokens(**sampling):
            return [token async for token in tiny.engine.generate(None, ids, Sampling(max_tokens=8, **sampling))]

        ended, went_on = tiny.run(tokens()), tiny.run(tokens(ignore_eos=True))
        assert [token.id for token in ended] == expected
        assert [token.finish for token in ended] == [None] * (len(expected) - 1) + ["stop"]
        assert [token.id for token in went_on[: len(expected)]] == expected
        assert [token.finish for token in went_on] == [None] * 7 + ["length"]

    def test_log_probabilities(self, tiny):
        prompt, ids = tiny.prompt(33, 8), tiny.ids(6, 8)

        async def tokens(count):
            sampling = Sampling(max_tokens=3, logprobs=count, ignore_eos=True, temperature=0.7, seed=1)
            return [token async for token in tiny.engine.generate(prompt, ids, sampling)]

        answer = tiny.run(tokens(4))
        vectors = torch.cat([prompt.embeddings, tiny.base.embed(torch.tensor([*ids, *(t.id for t in answer)]))])
        expected = tiny.base.model(inputs_embeds=vectors[None]).logits[0, -4:-1].log_softmax(-1)
        for token, row in zip(answer, expected, strict=True):
            assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)
            assert [one for one, _ in token.top] == row.topk(4).indices.tolist()
            assert [value for _, value in token.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)
        assert [(t.id, t.top) for t in tiny.run(tokens(0))] == [(t.id, ()) for t in answer]

    def test_a_warm_prompt_is_not_computed_again(self, tiny):
        prompt = tiny.prompt(64, 77)
        before = tiny.engine.figures()
        tiny.run(tiny.engine.warm(prompt))
        warmed = tiny.engine.figures()
        tiny.run(tiny.answer(prompt, tiny.ids(9), max_tokens=3, ignore_eos=True))
        after = tiny.engine.figures()
        assert warmed["state_misses_total"] - before["state_misses_total"] == 1
        assert after["state_misses_total"] == warmed["state_misses_total"]
        assert after["state_hits_total"] - warmed["state_hits_total"] == 1
        assert after["text_tokens_total"] - warmed["text_tokens_total"] == 9
        assert after["new_tokens_total"] - warmed["new_tokens_total"] == 3
        assert (after["requests_waiting"], after["requests_running"]) == (0, 0)

    def test_the_base_is_the_one_that_load_base_loads(self, tiny):
        assert tiny.engine.base.identity == tiny.base.identity
        tiny.base.identity.check_same(tiny.engine.base.identity, "it")
        assert tiny.engine.base.device.type == "meta"  # its weights are vLLM's alone


class TestSampling:
    def reference(self, tiny: Running, prompt: sp.SoftPrompt, ids: list[int], penalty: float) -> list[int]:
        """Greedy with Keskar's penalty on the tokens of text and answer, a token at a time."""
        context = list(ids)
        for _ in range(12):
            vectors = torch.cat([prompt.embeddings, tiny.base.embed(torch.tensor(context))])
            scores = tiny.base.model(inputs_embeds=vectors[None]).logits[0, -1]
            seen = torch.tensor(sorted(set(context)))
            scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            context.append(int(scores.argmax()))
        return context[len(ids) :]

    def test_repetition_penalty_sees_text_and_answer_but_no_virtual_token(self, tiny):
        """Behind the embeddings of token 0 and of the likeliest tokens, which would be penalised if they were seen."""
        bites = 0
        for seed in range(12):
            ids = tiny.ids(8, seed)
            likely = tiny.run(tiny.answer(None, ids, max_tokens=4, ignore_eos=True))
            prompt = sp.SoftPrompt(tiny.base.embed(torch.tensor([0, *likely])))
            found = tiny.run(tiny.answer(prompt, ids, max_tokens=12, ignore_eos=True, repetition_penalty=1.8))
            assert found == self.reference(tiny, prompt, ids, 1.8)
            bites += found != self.reference(tiny, prompt, ids, 1.0)
        assert bites >= 3

    def test_bad_words_never_come(self, tiny):
        prompt, ids = tiny.prompt(5, 3), tiny.ids(7, 3)
        first = tiny.run(tiny.answer(prompt, ids, max_tokens=1))[0]
        bad = ((first,),)
        answer = tiny.run(tiny.answer(prompt, ids, max_tokens=10, bad_words=bad, ignore_eos=True))
        assert first not in answer

    def test_the_end_of_text_is_no_bad_word(self, tiny):
        asked = {"max_tokens": 8, "bad_words": ((0,),)}
        for seed in range(20):
            ids = tiny.ids(6, seed)
            assert tiny.run(tiny.answer(None, ids, **asked)) == tiny.greedy(None, ids, 8)

    @pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
    def test_a_seed_gives_the_same_answer(self, tiny, seed):
        prompt, ids = tiny.prompt(5, 4), tiny.ids(7, 4)
        asked = {"temperature": 1.5, "top_p": 0.95, "top_k": 50, "max_tokens": 12, "ignore_eos": True}

        async def several():
            return await asyncio.gather(*(tiny.answer(prompt, ids, seed=seed, **asked) for _ in range(3)))

        found = tiny.run(several())
        assert found[0] == found[1] == found[2]
        assert found[0] != tiny.run(tiny.answer(prompt, ids, seed=17, **asked))

    @pytest.mark.parametrize(
        ("sampling", "says"),
        [
            ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
            ({"bad_words": ((5, 6),)}, "bad_words must be single tokens"),
            ({"bad_words": ((999,),)}, "999"),
            ({"temperature": 0.002}, "temperature is 0.002"),
            ({"temperature": 3.0}, "temperature must be in"),
            ({"logprobs": 500}, "500"),
        ],
    )
    def test_what_vllm_cannot_do_is_refused(self, tiny, sampling, says):
        with pytest.raises(SoftPromptError, match=says):
            tiny.run(tiny.answer(tiny.prompt(3), tiny.ids(4), **sampling))

    def test_repetition_penalty_is_refused_where_virtual_tokens_would_count(self, tiny, monkeypatch):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")  # read anew each time; the worker has chosen already
        with pytest.raises(SoftPromptError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
            tiny.run(tiny.answer(tiny.prompt(3), tiny.ids(4), repetition_penalty=1.2))


class TestBadInput:
    @pytest.mark.parametrize(
        ("length", "ids", "asked", "says"),
        [
            (0, [], 4, "nothing to predict from"),
            (100, [5] * 100, 57, "100 virtual tokens, 100 of text and 57 to follow are 257: the context holds 256"),
            (3, [258], 4, "token 258 of text 0"),
            (3, [-1], 4, "token -1 of text 0"),
        ],
    )
    def test_a_request_that_cannot_be_answered(self, tiny, length, ids, asked, says):
        prompt = tiny.prompt(length) if length else None
        with pytest.raises(SoftPromptError, match=says):
            tiny.run(tiny.answer(prompt, ids, max_tokens=asked))
        with pytest.raises(SoftPromptError, match=says):
            tiny.run(tiny.engine.classify(prompt, ids, [[5] * asked]))

    def test_the_longest_request_that_fits(self, tiny):
        prompt, ids = tiny.prompt(100), tiny.ids(150)
        assert tiny.run(tiny.answer(prompt, ids, max_tokens=6)) == tiny.greedy(prompt, ids, 6)
        label = [tiny.ids(6, 1)]
        found = tiny.run(tiny.engine.classify(prompt, ids, label))
        assert found == pytest.approx(tiny.likelihoods(prompt, ids, label), abs=1e-3)

    @pytest.mark.parametrize("labels", [[], [[]], [[5], []], [[5], [258]], [[-1]]])
    def test_continuations(self, tiny, labels):
        with pytest.raises(SoftPromptError, match="continuation"):
            tiny.run(tiny.engine.classify(None, [5], labels))

    def test_a_prompt_of_another_base(self, tiny, tiny_base):
        foreign = sp.SoftPrompt.random(tiny_base, 4)
        for prompt in (foreign, sp.SoftPrompt(foreign.embeddings)):
            with pytest.raises(WrongBaseError):
                tiny.run(tiny.answer(prompt, [5]))

    def test_one_bad_request_harms_no_other(self, tiny):
        prompt, ids = tiny.prompt(40, 2), tiny.ids(6, 2)

        async def ask():
            return await asyncio.gather(
                tiny.answer(prompt, ids, max_tokens=6),
                tiny.answer(prompt, [300], max_tokens=6),
                tiny.answer(prompt, ids, max_tokens=6, logprobs=500),
                tiny.engine.classify(prompt, ids, LABELS),
                return_exceptions=True,
            )

        good, foreign, greedy, scored = tiny.run(ask())
        assert good == tiny.greedy(prompt, ids, 6)
        assert isinstance(foreign, SoftPromptError)
        assert isinstance(greedy, SoftPromptError)
        assert scored == pytest.approx(tiny.likelihoods(prompt, ids), abs=1e-3)

    def test_embeddings_that_vllm_computes_otherwise(self, tiny):
        """As if vLLM scaled them once more, or not at all."""
        engine = tiny.engine
        for wrong in (engine._probe_rows * 8, engine._probe_rows / 8, engine._probe_rows.flip(0)):
            with (
                changed(engine, _probe_rows=wrong),
                pytest.raises(SoftPromptError, match="embeddings of LlamaForCausalLM"),
            ):
                tiny.run(engine._check_embeddings())
        tiny.run(engine._check_embeddings())


class TestQueue:
    def unfinished(self, tiny: Running) -> int:
        return tiny.engine._engine.output_processor.get_num_unfinished_requests()

    def test_a_cancelled_generation_leaves_vllm(self, tiny):
        async def leave():
            tokens = tiny.engine.generate(tiny.prompt(8), tiny.ids(4), Sampling(max_tokens=200, ignore_eos=True))
            await anext(tokens)
            running = tiny.engine.figures()["requests_running"]
            await tokens.aclose()
            return running

        assert tiny.run(leave()) == 1
        assert self.unfinished(tiny) == 0
        assert tiny.engine.figures()["requests_running"] == 0

    def test_a_cancelled_classification_leaves_vllm(self, tiny):
        async def leave():
            task = asyncio.ensure_future(tiny.engine.classify(tiny.prompt(8), tiny.ids(4), LABELS))
            while not self.unfinished(tiny):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while self.unfinished(tiny):
                await asyncio.sleep(0.01)

        tiny.run(leave())
        assert tiny.engine.figures()["requests_waiting"] == 0

    def test_a_full_queue_refuses(self, tiny):
        async def ask():
            asked = (tiny.answer(None, [5, 6], max_tokens=3, ignore_eos=True) for _ in range(5))
            return await asyncio.gather(*asked, return_exceptions=True)

        with changed(tiny.engine, max_waiting=3):
            found = tiny.run(ask())
        refused = [one for one in found if isinstance(one, QueueFullError)]
        assert len(refused) == 2
        assert refused[0].retry_after > 0
        assert [one for one in found if not isinstance(one, QueueFullError)] == [tiny.greedy(None, [5, 6], 3)] * 3
        assert tiny.run(tiny.answer(None, [5, 6], max_tokens=3)) == tiny.greedy(None, [5, 6], 3)

    def test_a_request_that_takes_too_long(self, tiny):
        async def finishes(**sampling: Any) -> list[str | None]:
            asked = tiny.engine.generate(None, [5, 6], Sampling(ignore_eos=True, **sampling))
            return [token.finish async for token in asked]

        with changed(tiny.engine, _time_limit=0.05):
            found = tiny.run(finishes(max_tokens=250))
            assert len(found) < 250
            assert found == [None] * (len(found) - 1) + ["length"]
        with changed(tiny.engine, _time_limit=1e-9):
            with pytest.raises(TimeLimitError, match="--time-limit"):
                tiny.run(finishes(max_tokens=2))
            with pytest.raises(TimeLimitError):
                tiny.run(tiny.engine.classify(None, [5, 6], LABELS))
        tiny.run(asyncio.sleep(0.1))
        assert self.unfinished(tiny) == 0
        assert tiny.engine.figures()["requests_running"] == 0

    def test_an_engine_that_is_not_started_or_stopped(self, tiny, tmp_path):
        with pytest.raises(StoppedError, match="started before"):
            tiny.run(tiny.engine.start())
        engine = VllmEngine(save_llama(tmp_path))
        with pytest.raises(StoppedError, match="not running"):
            tiny.run(engine.classify(None, [5], LABELS))
        tiny.run(engine.stop())
        with pytest.raises(StoppedError):
            tiny.run(engine.start())


@pytest.mark.slow
class TestOneEngineEach:
    """What takes an engine of its own, half a minute each."""

    def test_scaled_embeddings_and_a_stop_while_requests_run(self, tmp_path):
        torch.manual_seed(0)
        with running(save(GemmaForCausalLM(GemmaConfig(**SIZE)), tmp_path)) as gemma:
            requests = [(gemma.prompt(length, length), gemma.ids(5, length)) for length in (3, 40)]
            for prompt, ids in requests:
                found = gemma.run(gemma.engine.classify(prompt, ids, LABELS))
                assert found == pytest.approx(gemma.likelihoods(prompt, ids), abs=1e-3)

            async def stop_meanwhile():
                asked = [asyncio.ensure_future(gemma.answer(*request, max_tokens=30)) for request in requests]
                while not gemma.engine.figures()["requests_running"]:
                    await asyncio.sleep(0.001)
                await gemma.engine.stop()
                with pytest.raises(StoppedError):
                    await gemma.answer(*requests[0])
                return await asyncio.gather(*asked)

            assert gemma.run(stop_meanwhile()) == [gemma.greedy(*request, 30) for request in requests]

    def test_a_worker_that_dies(self, tmp_path):
        with running(save_llama(tmp_path)) as llama:
            for process in llama.engine._engine.engine_core.resources.engine_manager.processes:
                process.kill()
            for _ in range(2):
                with pytest.raises(StoppedError):
                    llama.run(llama.answer(None, [5, 6], max_tokens=100, ignore_eos=True))
            assert llama.engine.failed.is_set()

    @pytest.mark.real
    def test_smollm2(self):
        """Greedy answers and likelihoods of five tasks mixed, as the plain reference gives them."""
        with running("smollm2-135m", max_model_len=512) as smollm:
            tokenizer = smollm.base.tokenizer
            texts = ["a joy to watch", "two hours that I will not get back", "Was it good? Hard to say, but"]
            ids = [tokenizer(f"Review: {text}\nSentiment:")["input_ids"] for text in texts]
            labels = [tokenizer(label)["input_ids"] for label in (" negative", " positive", " very positive")]
            instructions = ["Classify this review:", "Answer in one word.", "Be kind.", "Summarise the text:"]
            prompts = [
                None,
                *(
                    sp.SoftPrompt.from_text(smollm.base, text, num_virtual_tokens=8 * 3**i)
                    for i, text in enumerate(instructions[:3])
                ),
                sp.SoftPrompt.from_text(smollm.base, instructions[3], num_virtual_tokens=100),
            ]
            requests = [(prompt, text) for prompt in prompts for text in ids]

            async def ask():
                return await asyncio.gather(
                    *(smollm.answer(*request, max_tokens=8) for request in requests),
                    *(smollm.engine.classify(*request, labels) for request in requests),
                )

            found = smollm.run(ask())
            assert found[: len(requests)] == [smollm.greedy(*request, 8) for request in requests]
            expected = torch.tensor([smollm.likelihoods(*request, labels) for request in requests])
            torch.testing.assert_close(torch.tensor(found[len(requests) :]), expected, rtol=0, atol=1e-3)
