from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import SoftPromptError
from softprompt.models.packed import Tree
from softprompt.models.state import Span, StatePool
from softprompt.prompts import SoftPrompt
from tests.models.families import CONCATENATED, PACKED, SHARED_PREFIX, WIDTH, make_model
from tests.models.reference import keep_float64

NOTHING = torch.zeros(0, dtype=torch.long)
MEMORY = 1 << 20


def make_prompt(length: int, seed: int = 0, width: int = WIDTH) -> SoftPrompt:
    return SoftPrompt(torch.randn(length, width, generator=torch.Generator().manual_seed(seed)))


def expected(model, prompt: SoftPrompt | None, ids: list[int]) -> torch.Tensor:
    """`[P + T, H]` by the model's own forward on the plain concatenation."""
    text = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
    whole = text if prompt is None else torch.cat([prompt.embeddings.to(text.dtype), text])
    return model.base_model(inputs_embeds=whole[None], use_cache=False).last_hidden_state[0].detach()


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(2, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class Sequences:
    """Texts that go on from their prompts' states, some tokens at a time."""

    def __init__(self, pool: StatePool) -> None:
        self.pool = pool
        self.places: dict[int, torch.Tensor] = {}

    def step(self, parts: list[tuple[int, SoftPrompt | None, list[int]]]) -> list[torch.Tensor]:
        """Compute each sequence's next tokens in one packed row, and the states that are not there yet."""
        fresh, prefixes, spans = [], [], []
        for number, prompt, ids in parts:
            state = None if prompt is None else self.pool.hold(prompt)
            if state is not None and state.last is None and state not in fresh:
                fresh.append(state)
                prefixes.append(Span(prompt.embeddings, NOTHING, state.places))
            own = self.places.get(number, NOTHING)
            past = own if state is None else torch.cat([state.places, own])
            new = self.pool.allocate(len(ids))
            assert new is not None
            self.places[number] = torch.cat([own, new])
            spans.append(Span(torch.tensor(ids), past, new))
        hidden = self.pool.compute(prefixes + spans)
        for state, states in zip(fresh, hidden, strict=False):
            state.last = states[-1]
        return hidden[len(fresh) :]


@pytest.fixture(autouse=True)
def _exact():
    with keep_float64():
        yield


@pytest.mark.parametrize("family", PACKED)
def test_a_kept_state_equals_the_concatenation(family):
    model = make_model(family, torch.float64)
    pool = StatePool(model, MEMORY)
    sequences = Sequences(pool)
    prompts = [make_prompt(5, 1), make_prompt(9, 2), None]
    texts = {i: (prompts[i % 3], ids_of(3 + 2 * i, i)) for i in range(6)}
    # All at once first, then token by token, then two that had waited, mixed with those.
    found = {i: [] for i in texts}
    for cut, members in [((0, 2), range(4)), ((2, 3), range(4)), ((3, 99), range(1, 4)), ((0, 99), range(4, 6))]:
        parts = [(i, texts[i][0], texts[i][1][slice(*cut)]) for i in members if texts[i][1][slice(*cut)]]
        for (i, _, _), hidden in zip(parts, sequences.step(parts), strict=True):
            found[i].append(hidden)
    for i, (prompt, ids) in texts.items():
        whole = expected(model, prompt, ids)[-len(ids) :]
        torch.testing.assert_close(torch.cat(found[i]), whole, rtol=1e-9, atol=1e-9)
    assert pool.resident == 2


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    texts=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=4),
)
def test_any_order_of_steps_equals_the_concatenation(lengths, texts):
    """Each text has a prompt or none, a length, and a number of tokens that it computes in one step."""
    model = make_model("llama", torch.float64)
    sequences = Sequences(StatePool(model, MEMORY))
    prompts = [None, *(make_prompt(length, seed) for seed, length in enumerate(lengths))]
    rows = [(prompts[k], ids_of(length, i), at_once) for i, (k, length, at_once) in enumerate(texts)]
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for start in range(10):
        parts = [
            (i, prompt, ids[start * at_once : (start + 1) * at_once])
            for i, (prompt, ids, at_once) in enumerate(rows)
            if start * at_once < len(ids)
        ]
        if parts:
            for (i, _, _), hidden in zip(parts, sequences.step(parts), strict=True):
                found[i].append(hidden)
    for (prompt, ids, _), hidden in zip(rows, found, strict=True):
        torch.testing.assert_close(torch.cat(hidden), expected(model, prompt, ids)[-len(ids) :], rtol=1e-9, atol=1e-9)


def test_a_tree_equals_its_branches():
    model = make_model("llama", torch.float64)
    pool = StatePool(model, MEMORY)
    prompt, ids = make_prompt(4), ids_of(5, 0)
    state = pool.hold(prompt)
    tree = Tree([7, 8, 9], [-1, 0, -1])  # 7, 7 8 and 9
    places = pool.allocate(8)
    spans = [Span(prompt.embeddings, NOTHING, state.places), Span(torch.tensor(ids), state.places, places, tree)]
    hidden = pool.compute(spans)[1]
    torch.testing.assert_close(hidden[:5], expected(model, prompt, ids)[4:], rtol=1e-9, atol=1e-9)
    for node, branch in enumerate([[7], [7, 8], [9]]):
        torch.testing.assert_close(hidden[5 + node], expected(model, prompt, ids + branch)[-1], rtol=1e-9, atol=1e-9)


class TestPool:
    def test_memory_is_bounded_in_bytes(self):
        model = make_model("llama")
        pool = StatePool(model, 100 * StatePool(model, MEMORY).bytes_per_place + 1)
        assert pool.capacity == 100
        # 2 layers, keys and values, 2 heads of width 4 in float32
        assert pool.bytes_per_place == 2 * 2 * 2 * 4 * 4
        assert len(pool.allocate(100)) == 100
        assert pool.allocate(1) is None

    def test_the_least_recently_used_leaves_first(self):
        pool = self.small(30)
        prompts = [make_prompt(10, seed) for seed in range(4)]
        for prompt in prompts[:3]:
            self.keep(pool, prompt)
        self.keep(pool, prompts[0])
        self.keep(pool, prompts[3])
        assert pool.resident == 3
        assert pool.counts.evictions == 1
        before = pool.counts.hits
        self.keep(pool, prompts[0])
        assert pool.counts.hits == before + 1
        self.keep(pool, prompts[1])  # the one that had left is computed anew
        assert pool.counts.misses == 5

    def test_a_state_in_use_never_leaves(self):
        pool = self.small(20)
        held = pool.hold(make_prompt(10, 0))
        held.last = torch.zeros(1)
        assert pool.hold(make_prompt(11, 1)) is None
        assert pool.allocate(11) is None
        assert pool.hold(make_prompt(10, 0)) is held
        pool.drop(held)
        assert pool.hold(make_prompt(11, 1)) is None
        pool.drop(held)
        assert pool.hold(make_prompt(11, 1)) is not None

    def test_places_are_never_given_twice(self):
        pool = self.small(50)
        state = pool.hold(make_prompt(10))
        taken = [state.places, pool.allocate(20), pool.allocate(20)]
        assert sorted(torch.cat(taken).tolist()) == list(range(50))
        pool.release(taken[1])
        assert sorted(pool.allocate(20).tolist()) == sorted(taken[1].tolist())

    def test_states_are_found_by_content(self):
        pool = self.small(50)
        prompt = make_prompt(5)
        state = pool.hold(prompt)
        assert pool.hold(SoftPrompt(prompt.embeddings.clone())) is state
        changed = prompt.embeddings.clone()
        changed[0, 0] += 1e-6
        assert pool.hold(SoftPrompt(changed)) is not state
        prompt.embeddings[0, 0] += 1  # in place, under the same object
        assert pool.hold(prompt) is not state

    def test_a_state_never_computed_leaves_with_its_holder(self):
        pool = self.small(10)
        state = pool.hold(make_prompt(10))
        pool.drop(state)
        assert (pool.resident, pool.state_bytes) == (0, 0)
        assert len(pool.allocate(10)) == 10

    def test_a_base_that_cannot_pack_is_refused(self):
        for family in (SHARED_PREFIX[0], CONCATENATED[0]):
            with pytest.raises(SoftPromptError, match="cannot keep states"):
                StatePool(make_model(family), MEMORY)

    def test_too_little_memory_is_refused(self):
        with pytest.raises(SoftPromptError, match="hold no token"):
            StatePool(make_model("llama"), 10)

    def small(self, places: int) -> StatePool:
        return StatePool(make_model("llama"), places * 2 * 2 * 2 * 4 * 4)

    def keep(self, pool: StatePool, prompt: SoftPrompt) -> None:
        state = pool.hold(prompt)
        if state.last is None:
            state.last = pool.compute([Span(prompt.embeddings, NOTHING, state.places)])[0][-1]
        pool.drop(state)
