from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

import softprompt as sp
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import final_states, score
from softprompt.serving.engine import NotFiniteError, QueueFullError, Sampling, StoppedError, TimeLimitError
from softprompt.serving.local import LocalEngine
from softprompt.serving.sampling import Chooser
from tests.conftest import make_base
from tests.models.families import make_model

MEMORY = 1 << 20
LABELS = [[5, 6], [5, 7, 8], [9]]


def make_prompt(base: sp.Base, length: int, seed: int = 0) -> sp.SoftPrompt:
    return sp.SoftPrompt.random(base, length, seed=seed)


def ids_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 258, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@asynccontextmanager
async def running(base: sp.Base, **settings: object) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(base, **{"state_bytes": MEMORY, **settings})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def answer(engine: LocalEngine, prompt: sp.SoftPrompt | None, ids: list[int], **sampling: object) -> list[int]:
    return [token.id async for token in engine.generate(prompt, ids, Sampling(**sampling))]


def greedy(base: sp.Base, prompt: sp.SoftPrompt | None, ids: list[int], count: int) -> list[int]:
    """The reference: the likeliest token after the plain concatenation, computed anew each time; an end included."""
    row = base.embed(torch.tensor(ids, dtype=torch.long)) if prompt is None else prompt.embeddings
    if prompt is not None and ids:
        row = torch.cat([row, base.embed(torch.tensor(ids))])
    found: list[int] = []
    while len(found) < count and not base.end_ids & set(found):
        with torch.no_grad():
            scores = base.model(inputs_embeds=row[None].to(base.dtype), use_cache=False).logits[0, -1]
        found.append(int(scores.argmax()))
        row = torch.cat([row, base.embed(torch.tensor(found[-1:]))])
    return found


def likelihoods(base: sp.Base, prompt: sp.SoftPrompt | None, ids: list[int]) -> list[float]:
    return score(PromptedModel(base, [] if prompt is None else [prompt]), [ids], LABELS)[0].tolist()


@pytest.mark.parametrize("step", [3, 40, 1000])
def test_a_mixed_batch_equals_one_by_one(tiny_base, step):
    """Generations and classifications of many prompts, of all lengths and none, in steps of few and many tokens."""
    prompts = [None, *(make_prompt(tiny_base, length, length) for length in (1, 4, 16, 30))]
    requests = [(prompts[i % 5], ids_of(1 + i % 7 * 3, i)) for i in range(20)]

    async def ask():
        async with running(tiny_base, max_batch_tokens=step) as engine:
            return await asyncio.gather(
                *(answer(engine, prompt, ids, max_tokens=2 + i % 6) for i, (prompt, ids) in enumerate(requests)),
                *(engine.classify(prompt, ids, LABELS) for prompt, ids in requests),
            )

    found = asyncio.run(ask())
    assert found[:20] == [greedy(tiny_base, p, ids, 2 + i % 6) for i, (p, ids) in enumerate(requests)]
    expected = torch.tensor([likelihoods(tiny_base, prompt, ids) for prompt, ids in requests])
    torch.testing.assert_close(torch.tensor(found[20:]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "opt", "qwen3"])
def test_other_families_equal_one_by_one(family):
    model = make_model(family)
    base = sp.Base(model, make_base().tokenizer, family)
    prompts = [None, make_prompt(base, 5, 1), make_prompt(base, 9, 2)]
    requests = [(prompts[i % 3], [t % 61 for t in ids_of(3 + i, i)]) for i in range(6)]
    labels = [[5, 6], [7]]

    async def ask():
        async with running(base) as engine:
            texts = [answer(engine, prompt, ids, max_tokens=5) for prompt, ids in requests]
            return await asyncio.gather(*texts, *(engine.classify(p, ids, labels) for p, ids in requests))

    found = asyncio.run(ask())
    assert found[:6] == [greedy(base, prompt, ids, 5) for prompt, ids in requests]
    for (prompt, ids), row in zip(requests, found[6:], strict=True):
        expected = score(PromptedModel(base, [prompt] if prompt else []), [ids], labels)[0]
        torch.testing.assert_close(torch.tensor(row), expected, rtol=1e-4, atol=1e-4)


def test_an_empty_text_is_answered_from_the_prompt(tiny_base):
    prompt = make_prompt(tiny_base, 6)

    async def ask():
        async with running(tiny_base) as engine:
            first = await asyncio.gather(answer(engine, prompt, [], max_tokens=4), engine.classify(prompt, [], LABELS))
            again = await asyncio.gather(answer(engine, prompt, [], max_tokens=4), engine.classify(prompt, [], LABELS))
            return first, again

    for generated, scored in asyncio.run(ask()):
        assert generated == greedy(tiny_base, prompt, [], 4)
        assert scored == pytest.approx(likelihoods(tiny_base, prompt, []), rel=1e-4)


def test_states_that_do_not_fit_leave_and_come_back(tiny_base):
    """Room for two prompts and their texts; ten take turns."""
    prompts = [make_prompt(tiny_base, 20, seed) for seed in range(10)]
    place = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes

    async def ask():
        async with running(tiny_base, state_bytes=64 * place) as engine:
            found = await asyncio.gather(
                *(answer(engine, prompt, ids_of(4, i), max_tokens=4) for i, prompt in enumerate(prompts * 3))
            )
            return found, engine.figures()

    found, figures = asyncio.run(ask())
    assert found == [greedy(tiny_base, prompt, ids_of(4, i), 4) for i, prompt in enumerate(prompts * 3)]
    assert figures["state_evictions_total"] >= 8
    assert figures["state_bytes"] <= 64 * place
    assert figures["new_tokens_total"] == sum(map(len, found))


@pytest.mark.parametrize("virtual", [0, 5])
def test_any_of_the_ends_stops_and_what_is_suppressed_never_comes(tiny_base, virtual):
    """The generation config's ends count beside the tokenizer's; an end is no bad word; one rule with `predict`."""
    prompt, ids = make_prompt(tiny_base, virtual) if virtual else None, ids_of(6, 2)

    def ask(**sampling):
        async def one():
            async with running(tiny_base) as engine:
                return await answer(engine, prompt, ids, max_tokens=9, **sampling)

        return asyncio.run(one())

    def offline(ends):
        model = PromptedModel(tiny_base, [] if prompt is None else [prompt])
        return generate(model, [ids], max_new_tokens=9, ends=ends)[0]

    plain = ask(ignore_eos=True)
    assert len(plain) == 9
    second = next(token for token in plain if plain.index(token) > 1)
    cut = plain.index(second)
    tiny_base.model.generation_config.eos_token_id = [second, 257]
    tiny_base.__dict__.pop("end_ids", None)
    assert tiny_base.end_ids == {0, second, 257}
    assert ask() == ask(bad_words=((second,),)) == plain[: cut + 1]
    assert offline(tiny_base.end_ids) == plain[:cut]
    tiny_base.model.generation_config.suppress_tokens = [second, plain[0]]
    changed = ask(ignore_eos=True)
    assert len(changed) == 9
    assert not {second, plain[0]} & set(changed)
    assert offline([]) == changed


def test_a_warm_prompt_is_not_computed_again(tiny_base):
    prompt = make_prompt(tiny_base, 12)

    async def ask():
        async with running(tiny_base) as engine:
            await engine.warm(prompt)
            warmed = dict(engine.figures())
            await answer(engine, prompt, ids_of(3), max_tokens=2)
            return warmed, engine.figures()

    warmed, after = asyncio.run(ask())
    assert (warmed["states_resident"], warmed["state_misses_total"], warmed["state_hits_total"]) == (1, 1, 0)
    assert (after["states_resident"], after["state_misses_total"], after["state_hits_total"]) == (1, 1, 1)


class TestSampling:
    def ask(self, base: sp.Base, prompt: sp.SoftPrompt | None, ids: list[int], **sampling: object) -> list[int]:
        async def one():
            async with running(base) as engine:
                return await answer(engine, prompt, ids, **{"max_tokens": 12, "ignore_eos": True, **sampling})

        return asyncio.run(one())

    def reference(self, base: sp.Base, ids: list[int], **settings: object) -> list[int]:
        """Transformers' own generate. It counts a text's ids only where the text does not come as embeddings."""
        tokens = base.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=1,
            **settings,
        )
        return tokens[0, len(ids) :].tolist()

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
            ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
            ({"bad_words": ((7,), (9, 10))}, {"bad_words_ids": [[7], [9, 10]]}),
        ],
    )
    def test_processors_are_those_of_transformers(self, tiny_base, ours, theirs):
        ids = ids_of(9, 3)
        assert self.ask(tiny_base, None, ids, **ours) == self.reference(tiny_base, ids, **theirs)

    def test_virtual_tokens_are_no_vocabulary(self, tiny_base, monkeypatch):
        """What the processors see as context is the text and the answer so far, and the scores are of V tokens."""
        contexts: list[list[int]] = []
        choose = Chooser.choose

        def watched(chooser, context, scores):
            contexts.append(list(context))
            assert scores.shape == (258,)
            return choose(chooser, context, scores)

        monkeypatch.setattr(Chooser, "choose", watched)
        prompt = make_prompt(tiny_base, 6)
        new = self.ask(tiny_base, prompt, [3, 4], max_tokens=3, repetition_penalty=5.0, no_repeat_ngram_size=1)
        assert contexts == [[3, 4], [3, 4, *new[:1]], [3, 4, *new[:2]]]
        assert len({3, 4, *new}) == 5

    def test_the_same_seed_gives_the_same_answer(self, tiny_base):
        prompt = make_prompt(tiny_base, 4)
        settings = {"temperature": 1.5, "top_p": 0.95, "top_k": 100}
        answers = [self.ask(tiny_base, prompt, ids_of(4), **settings, seed=seed) for seed in (1, 1, 2)]
        assert answers[0] == answers[1] != answers[2]

    def test_sampling_follows_the_probabilities(self, tiny_base):
        """Of 400 draws at top_k=2, the likelier token comes about as often as its probability says."""
        prompt, ids = make_prompt(tiny_base, 4), ids_of(4)

        async def many():
            async with running(tiny_base) as engine:
                sampling = [Sampling(max_tokens=1, temperature=2.0, top_k=2, seed=seed) for seed in range(400)]
                return await asyncio.gather(*(self.first(engine, prompt, ids, one) for one in sampling))

        found = asyncio.run(many())
        text = tiny_base.model.get_input_embeddings()(torch.tensor(ids))
        with torch.no_grad():
            scores = tiny_base.model(inputs_embeds=torch.cat([prompt.embeddings, text])[None]).logits[0, -1]
        values, tokens = (scores / 2).topk(2)
        share = float(values.softmax(-1)[0])
        assert set(found) <= set(tokens.tolist())
        assert abs(found.count(int(tokens[0])) / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5

    async def first(self, engine, prompt, ids, sampling):
        return (await anext(engine.generate(prompt, ids, sampling))).id

    def test_log_probabilities_are_the_models_own(self, tiny_base):
        prompt, ids = make_prompt(tiny_base, 4), ids_of(4)

        async def one():
            async with running(tiny_base) as engine:
                sampling = Sampling(max_tokens=3, logprobs=5, repetition_penalty=1.5, ignore_eos=True)
                return [token async for token in engine.generate(prompt, ids, sampling)]

        tokens = asyncio.run(one())
        for i, token in enumerate(tokens):
            text = torch.tensor([*ids, *(t.id for t in tokens[:i])])
            whole = torch.cat([prompt.embeddings, tiny_base.embed(text)])
            with torch.no_grad():
                expected = tiny_base.model(inputs_embeds=whole[None]).logits[0, -1].log_softmax(-1)
            assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
            assert [t for t, _ in token.top] == expected.topk(5).indices.tolist()
            assert [v for _, v in token.top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-4)
        assert [token.finish for token in tokens] == [None, None, "length"]

    def test_what_makes_no_sense_is_refused(self):
        for wrong in [{"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}]:
            with pytest.raises(SoftPromptError, match=next(iter(wrong))):
                Sampling(**wrong)


class TestBadInput:
    @pytest.mark.parametrize(
        ("length", "ids", "message"),
        [
            (0, [], "nothing to predict from"),
            (3, [1, 300], "token 300"),
            (3, [-1], "token -1"),
            (200, ids_of(60), "the context holds 256"),
        ],
    )
    def test_is_refused_in_one_line(self, tiny_base, length, ids, message):
        prompt = make_prompt(tiny_base, length) if length else None

        async def ask():
            async with running(tiny_base) as engine:
                with pytest.raises(SoftPromptError, match=message):
                    await answer(engine, prompt, ids)
                with pytest.raises(SoftPromptError, match=message):
                    await engine.classify(prompt, ids, LABELS)
                return await answer(engine, None, [5], max_tokens=2)

        assert asyncio.run(ask()) == greedy(tiny_base, None, [5], 2)

    def test_a_prompt_of_another_base_is_refused(self, tiny_base):
        prompt = make_prompt(make_base(seed=1), 4)

        async def ask():
            async with running(tiny_base) as engine:
                with pytest.raises(WrongBaseError):
                    await engine.warm(prompt)

        asyncio.run(ask())

    def test_what_never_fits_the_memory_is_refused(self, tiny_base):
        async def ask():
            async with running(tiny_base, state_bytes=2 * 2 * 2 * 8 * 4 * 20) as engine:
                with pytest.raises(SoftPromptError, match="holds 20"):
                    await answer(engine, make_prompt(tiny_base, 10), [3] * 5, max_tokens=7)
                return await answer(engine, make_prompt(tiny_base, 10), [3] * 5, max_tokens=6)

        assert asyncio.run(ask()) == greedy(tiny_base, make_prompt(tiny_base, 10), [3] * 5, 6)

    def test_continuations_of_nothing_are_refused(self, tiny_base):
        async def ask():
            async with running(tiny_base) as engine:
                for wrong in ([], [[3], []]):
                    with pytest.raises(SoftPromptError, match="continuations"):
                        await engine.classify(None, [3], wrong)
                with pytest.raises(SoftPromptError, match="token 999"):
                    await engine.classify(None, [3], [[999]])

        asyncio.run(ask())

    @pytest.mark.parametrize("setting", ["max_waiting", "time_limit", "max_batch_tokens"])
    def test_settings_must_be_above_zero(self, tiny_base, setting):
        with pytest.raises(SoftPromptError, match=setting):
            LocalEngine(tiny_base, **{setting: 0})


class Held:
    """Holds the engine's steps until it is told to let them go."""

    def __init__(self, engine: LocalEngine) -> None:
        self._gate = threading.Event()
        compute = engine._scheduler.pool.compute

        def wait(spans):
            assert self._gate.wait(10)
            return compute(spans)

        engine._scheduler.pool.compute = wait

    def let_go(self) -> None:
        self._gate.set()


def test_one_failing_request_harms_no_other(tiny_base):
    poisoned = make_prompt(tiny_base, 7)
    good = make_prompt(tiny_base, 5)

    async def ask():
        async with running(tiny_base) as engine:
            compute = engine._scheduler.pool.compute

            def fail(spans):
                if any(torch.equal(span.inputs, poisoned.embeddings) for span in spans if span.inputs.ndim == 2):
                    raise RuntimeError("out of memory")
                return compute(spans)

            engine._scheduler.pool.compute = fail
            found = await asyncio.gather(
                answer(engine, good, ids_of(5), max_tokens=4),
                answer(engine, poisoned, ids_of(5), max_tokens=4),
                engine.classify(good, ids_of(6), LABELS),
                return_exceptions=True,
            )
            engine._scheduler.pool.compute = compute
            return found, await answer(engine, poisoned, ids_of(5), max_tokens=4), engine.figures()

    (first, failed, scored), later, figures = asyncio.run(ask())
    assert first == greedy(tiny_base, good, ids_of(5), 4)
    assert isinstance(failed, StoppedError)
    assert "out of memory" in str(failed)
    assert scored == pytest.approx(likelihoods(tiny_base, good, ids_of(6)), rel=1e-4)
    assert later == greedy(tiny_base, poisoned, ids_of(5), 4)
    assert figures["requests_running"] == 0


def test_a_full_queue_refuses(tiny_base):
    async def ask():
        async with running(tiny_base, max_waiting=3) as engine:
            held = Held(engine)
            first = asyncio.create_task(answer(engine, None, [3], max_tokens=2))
            while not engine.figures()["requests_running"]:
                await asyncio.sleep(0.01)
            others = [asyncio.create_task(answer(engine, None, [3], max_tokens=2)) for _ in range(3)]
            await asyncio.sleep(0.05)
            with pytest.raises(QueueFullError) as full:
                await answer(engine, None, [3], max_tokens=2)
            held.let_go()
            return full.value.retry_after, await asyncio.gather(first, *others)

    retry_after, found = asyncio.run(ask())
    assert retry_after > 0
    assert found == [greedy(tiny_base, None, [3], 2)] * 4


def test_time_counts_from_when_a_request_runs_and_what_is_there_is_delivered(tiny_base):
    async def ask():
        async with running(tiny_base, time_limit=0.2) as engine:
            held = Held(engine)
            sampling = Sampling(max_tokens=20, ignore_eos=True)
            first = asyncio.create_task(anext(engine.generate(None, [3], sampling)))
            while not engine.figures()["requests_running"]:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(engine.classify(None, [3], LABELS))
            await asyncio.sleep(0.4)
            held.let_go()
            return await first, await waiting, await answer(engine, None, [3], max_tokens=2), engine.figures()

    first, waited, later, figures = asyncio.run(ask())
    assert (first.id, first.finish) == (greedy(tiny_base, None, [3], 1)[0], "length")
    assert waited == pytest.approx(likelihoods(tiny_base, None, [3]), rel=1e-4)
    assert later == greedy(tiny_base, None, [3], 2)
    assert figures["requests_running"] == 0


def test_a_text_that_takes_all_the_time_is_ended(tiny_base):
    async def ask():
        async with running(tiny_base, time_limit=0.2, max_batch_tokens=3) as engine:
            held = Held(engine)
            requests = [
                asyncio.create_task(answer(engine, None, ids_of(9), max_tokens=20)),
                asyncio.create_task(engine.classify(None, ids_of(9), LABELS)),
            ]
            while not engine.figures()["requests_running"]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.4)
            held.let_go()
            first = (await asyncio.gather(*requests, return_exceptions=True))[0]
            return first, await answer(engine, None, [3], max_tokens=2), engine.figures()

    ended, later, figures = asyncio.run(ask())
    assert isinstance(ended, TimeLimitError)
    assert "--time-limit" in str(ended)
    assert later == greedy(tiny_base, None, [3], 2)
    assert figures["requests_running"] == 0


def test_no_more_run_at_once_than_end_in_time(tiny_base):
    """At a second a row and step, two of 25 tokens fit a limit of 60 s; whoever waits is answered in full."""

    async def ask():
        async with running(tiny_base) as engine:
            engine._pace.note = lambda rows, seconds: most.append(len(engine._scheduler.running))
            engine._pace._each = 1.0
            sampling = {"max_tokens": 25, "ignore_eos": True}
            return await asyncio.gather(*(answer(engine, None, [3 + i], **sampling) for i in range(6)))

    most: list[int] = []
    found = asyncio.run(ask())
    assert max(most) == 2
    assert [len(one) for one in found] == [25] * 6


def test_one_that_cannot_end_in_time_even_alone_is_answered_too(tiny_base):
    async def ask():
        async with running(tiny_base) as engine:
            engine._pace.note = lambda rows, seconds: None
            engine._pace._each = 10.0
            return await asyncio.gather(*(answer(engine, None, [3], max_tokens=8, ignore_eos=True) for _ in range(3)))

    assert [len(one) for one in asyncio.run(ask())] == [8] * 3


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])  # a root mean square norm would make the numbers finite
def test_numbers_that_are_not_finite_stay_with_their_prompt(tiny_tokenizer, family):
    """The pool is so small that the bad prompt has filled all places before the good one gets them."""
    base = sp.Base(
        make_model(family, vocab_size=258, max_position_embeddings=200, n_positions=200), tiny_tokenizer, "b"
    )
    width = base.hidden_size
    good, signs = make_prompt(base, 6), torch.randn(40, width, generator=torch.Generator().manual_seed(1)).sign()
    bad = sp.SoftPrompt(signs * 3.3e38)

    async def ask():
        per_place = LocalEngine(base)._scheduler.pool.bytes_per_place
        async with running(base, state_bytes=64 * per_place) as engine:
            errors = await asyncio.gather(
                answer(engine, bad, [3], max_tokens=8),
                engine.classify(bad, [3], LABELS),
                engine.warm(bad),
                return_exceptions=True,
            )
            kept = engine.figures()["states_resident"]
            texts = [ids_of(1 + i % 5, i) for i in range(16)]
            found = await asyncio.gather(*(answer(engine, good, ids, max_tokens=4) for ids in texts))
            return errors, kept, texts, found

    errors, kept, texts, found = asyncio.run(ask())
    assert [type(error) for error in errors] == [NotFiniteError] * 3
    assert "not finite on this base in float32" in str(errors[0])
    assert kept == 0
    assert found == [greedy(base, good, ids, 4) for ids in texts]


def test_a_client_that_goes_away_frees_its_place(tiny_base):
    prompt = make_prompt(tiny_base, 5)

    async def ask():
        async with running(tiny_base) as engine:
            stream = engine.generate(prompt, [3], Sampling(max_tokens=200, ignore_eos=True))
            await anext(stream)
            await stream.aclose()
            cancelled = asyncio.create_task(engine.classify(prompt, ids_of(9), LABELS))
            await asyncio.sleep(0)
            cancelled.cancel()
            for _ in range(100):
                await asyncio.sleep(0.02)
                if not engine.figures()["requests_running"] + engine.figures()["requests_waiting"]:
                    break
            free = engine._scheduler.pool.free
            return engine.figures(), free, engine._scheduler.pool.capacity

    figures, free, capacity = asyncio.run(ask())
    assert figures["requests_running"] == figures["requests_waiting"] == 0
    assert figures["new_tokens_total"] < 200
    assert free == capacity - 5  # the prompt's state alone


def test_stopping_finishes_what_waits_and_refuses_what_comes(tiny_base):
    async def ask():
        engine = LocalEngine(tiny_base, state_bytes=MEMORY)
        with pytest.raises(StoppedError):
            await answer(engine, None, [3])
        await engine.start()
        tasks = [asyncio.create_task(answer(engine, None, ids_of(5, i), max_tokens=6)) for i in range(6)]
        await asyncio.sleep(0.01)
        await engine.stop()
        with pytest.raises(StoppedError):
            await answer(engine, None, [3])
        with pytest.raises(StoppedError):
            await engine.start()
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask()) == [greedy(tiny_base, None, ids_of(5, i), 6) for i in range(6)]


def test_every_answer_is_that_of_the_prompt_named(tiny_base):
    """Many prompts at random, with few states in memory: no request gets another prompt's answer."""
    draw = random.Random(0)
    prompts = [make_prompt(tiny_base, draw.randint(1, 20), seed) for seed in range(40)]
    expected = {i: likelihoods(tiny_base, prompt, [3, 4, 5]) for i, prompt in enumerate(prompts)}
    chosen = [draw.randrange(40) for _ in range(400)]

    async def ask():
        async with running(tiny_base, state_bytes=2 * 2 * 2 * 8 * 4 * 150) as engine:
            return await asyncio.gather(*(engine.classify(prompts[i], [3, 4, 5], LABELS) for i in chosen))

    for i, found in zip(chosen, asyncio.run(ask()), strict=True):
        assert found == pytest.approx(expected[i], rel=1e-4)


@pytest.mark.real
def test_the_real_base_gives_the_same_answers():
    base = sp.load_base("smollm2-135m", dtype="float32")
    prompts = [None, *(sp.SoftPrompt.from_text(base, "Answer in one word:", n) for n in (8, 100))]
    texts = ["The capital of France is", "Two and two make", "Water boils at"]
    requests = [(prompt, base.tokenizer(text)["input_ids"]) for prompt in prompts for text in texts]

    async def ask():
        async with running(base, state_bytes=1 << 28) as engine:
            return await asyncio.gather(*(answer(engine, prompt, ids, max_tokens=5) for prompt, ids in requests))

    assert asyncio.run(ask()) == [greedy(base, prompt, ids, 5) for prompt, ids in requests]


def test_heads_words_and_texts_in_one_batch_equal_one_by_one(tiny_base):
    """Also a head without virtual tokens, and two heads behind the same ones."""
    generator = torch.Generator().manual_seed(0)

    def with_head(length: int, seed: int) -> sp.SoftPrompt:
        embeddings = (
            make_prompt(tiny_base, length, seed).embeddings if length else torch.zeros(0, tiny_base.hidden_size)
        )
        return sp.SoftPrompt(embeddings, head=torch.randn(4, tiny_base.hidden_size, generator=generator))

    heads = [with_head(5, 1), with_head(5, 1), with_head(0, 0), with_head(12, 2)]
    words = [None, make_prompt(tiny_base, 5, 1), make_prompt(tiny_base, 9, 3)]
    requests = [ids_of(1 + i % 5 * 3, i) for i in range(12)]

    async def ask():
        async with running(tiny_base, max_batch_tokens=40) as engine:
            return await asyncio.gather(
                *(engine.classify(heads[i % 4], ids, None) for i, ids in enumerate(requests)),
                *(engine.classify(words[i % 3], ids, LABELS) for i, ids in enumerate(requests)),
                *(answer(engine, words[i % 3], ids, max_tokens=4) for i, ids in enumerate(requests)),
            )

    found = asyncio.run(ask())
    for i, ids in enumerate(requests):
        model = PromptedModel(tiny_base, [heads[i % 4]])
        expected = (final_states(model, [ids]) @ heads[i % 4].head.T).log_softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(found[i]), expected, rtol=1e-4, atol=1e-4)
        assert found[12 + i] == pytest.approx(likelihoods(tiny_base, words[i % 3], ids), rel=1e-4, abs=1e-4)
        assert found[24 + i] == greedy(tiny_base, words[i % 3], ids, 4)


def test_a_prompt_without_a_head_is_not_asked_for_one(tiny_base):
    async def ask(prompt):
        async with running(tiny_base) as engine:
            await engine.classify(prompt, [3], None)

    for prompt in (None, make_prompt(tiny_base, 4)):
        with pytest.raises(SoftPromptError, match="has no head to answer by"):
            asyncio.run(ask(prompt))
