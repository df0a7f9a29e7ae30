"""The layout of the packed row against a definition of it in two plain loops."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.models.packed import Layout, Plan, Tree, build_layout


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], Tree | None]:
    prompts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    texts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    chosen = [draw(st.integers(0, len(prompts) - 1)) for _ in texts]
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, 4)))]
    return prompts, chosen, texts, Tree([7] * len(parents), parents) if parents else None


def plain(
    prompts: list[int], chosen: list[int], texts: list[int], tree: Tree | None
) -> tuple[list[int], list[set[int]]]:
    """The position of each place, and the places that it sees, said as simply as can be."""
    positions: list[int] = []
    seen: list[set[int]] = []
    starts = []
    for length in prompts:
        starts.append(len(positions))
        for i in range(length):
            seen.append(set(range(starts[-1], starts[-1] + i + 1)))
            positions.append(i)
    for k, length in zip(chosen, texts, strict=True):
        before = set(range(starts[k], starts[k] + prompts[k]))
        start = len(positions)
        for i in range(length):
            seen.append(before | set(range(start, start + i + 1)))
            positions.append(prompts[k] + i)
        text = before | set(range(start, start + length))
        for node, parent in enumerate(tree.parents if tree else ()):
            above = text if parent < 0 else seen[start + length + parent]
            seen.append(above | {start + length + node})
            positions.append(len(seen[-1]) - 1)
    return positions, seen


def sight(layout: Layout, window: int | None = None) -> list[set[int]]:
    """The places that each place sees by the plans of the layout; each must be asked exactly once."""
    found: dict[int, set[int]] = {}
    for block, plan in zip(layout.blocks, layout.plans(1, 1, window), strict=True):
        for r, line in enumerate(block.queries.tolist()):
            for column, place in enumerate(line):
                if place < 0:
                    continue
                assert place not in found
                open_keys = block.keys[r][plan.bias[r, 0, column] == 0].tolist()
                assert len(open_keys) == len(set(open_keys))
                found[place] = set(open_keys)
    return [found[place] for place in range(len(layout.positions))]


@given(rows())
@settings(max_examples=60, deadline=None)
def test_positions_and_sight_are_those_of_the_separate_rows(row):
    positions, seen = plain(*row)
    layout = build_layout(*row)
    assert layout.positions.tolist() == positions
    assert sight(layout) == seen


@given(rows(), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_a_window_counts_positions_not_places(row, window):
    positions, seen = plain(*row)
    expected = [{key for key in keys if positions[query] - positions[key] < window} for query, keys in enumerate(seen)]
    assert sight(build_layout(*row), window) == expected


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_no_row_is_padded_beyond_twice_its_length(lengths):
    for block in build_layout([0], [0] * len(lengths), lengths).blocks:
        assert (2 * (block.queries >= 0).sum(1) >= block.queries.shape[1]).all()


def test_rows_of_like_length_share_a_block():
    assert len(build_layout([4], [0] * 3, [10, 12, 9]).blocks) == 2  # the prompt's and one for all texts
    assert len(build_layout([4], [0] * 3, [10, 12, 3]).blocks) == 3


@given(rows(), st.sampled_from([(1, 1), (4, 2), (2, 1)]))
@settings(max_examples=30, deadline=None)
def test_a_plan_puts_each_answer_where_it_was_asked(row, heads):
    layout = build_layout(*row)
    size = len(layout.positions) * heads[0]
    target = torch.full((size, 1), -1.0)
    for plan in layout.plans(*heads, None):
        answers = plan.query_rows[:, None].float()
        if plan.real is not None:  # what is computed for padding must land nowhere
            padding = torch.ones(len(answers), dtype=torch.bool)
            padding[plan.real] = False
            answers[padding] = -7.0
        plan.put(target, answers)
        taken = plan.take(torch.ones(size, 1)).flatten()
        assert taken.sum() == len(plan.places)
        if plan.real is not None:
            assert not taken[padding].any()
    assert target.flatten().tolist() == list(range(size))


def test_heads_that_share_a_key_head_stand_together():
    plan = build_layout([0], [0], [2]).plans(4, 2, None)[0]
    assert plan.shape == (1, 2, 2, 2, 2)
    # Rows are place * heads + head: key head 0 serves the heads 0 and 1, key head 1 the heads 2 and 3.
    assert plan.query_rows.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert plan.key_rows.tolist() == [0, 2, 1, 3]


def test_plans_are_made_once_for_each_shape(monkeypatch):
    made = []
    make = Plan.make
    monkeypatch.setattr(Plan, "make", lambda *args: made.append(args[3:]) or make(*args))
    layout = build_layout([2], [0], [3])
    assert layout.plans(4, 2, None) is layout.plans(4, 2, None)
    assert layout.plans(4, 2, 3) is not layout.plans(4, 2, None)
    assert made == [(4, 2, None)] * 2 + [(4, 2, 3)] * 2


def test_what_a_row_needs_goes_to_its_device_and_is_planned_on_the_cpu():
    layout = build_layout([2, 3], [1, 0], [3, 1])
    layout.device = torch.device("meta")
    plans = layout.plans(2, 1, None)
    assert {t.device.type for p in plans for t in (p.query_rows, p.key_rows, p.places, p.bias)} == {"meta"}
    sequences = layout.sequences
    assert {t.device.type for t in (sequences.keys, sequences.query_ends, sequences.key_ends)} == {"meta"}
    assert {t.device.type for b in layout.blocks for t in (b.queries, b.keys, b.seen)} == {"cpu"}
    assert layout.positions.device.type == "cpu"


@given(rows().filter(lambda row: row[3] is None and sum(row[0]) + sum(row[2])))
@settings(max_examples=60, deadline=None)
def test_a_row_is_sequences_whose_queries_are_the_last_of_their_keys(row):
    expected, sequences = plain(*row)[1], build_layout(*row).sequences
    queries, keys = sequences.query_ends.tolist(), sequences.key_ends.tolist()
    assert sequences.query_ends.dtype == sequences.key_ends.dtype == torch.int32
    assert (queries[0], queries[-1], keys[0], keys[-1]) == (0, len(expected), 0, len(sequences.keys))
    spans = list(zip(queries, queries[1:], keys, keys[1:], strict=False))
    for first, last, begin, end in spans:
        own = sequences.keys[begin:end].tolist()
        assert own[len(own) - (last - first) :] == list(range(first, last))
        for place in range(first, last):
            assert set(own[: len(own) - (last - 1 - place)]) == expected[place]
    assert sequences.longest_query == max(last - first for first, last, _, _ in spans)
    assert sequences.longest_key == max(end - begin for _, _, begin, end in spans)


def test_a_tree_sees_its_ancestors_only():
    #  0 -> 1 -> 3 and 0 -> 2
    ancestry = Tree([5, 6, 7, 8], [-1, 0, 0, 1]).ancestry()
    assert ancestry.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
