from __future__ import annotations

import pytest

from softprompt import Recipe, SoftPromptError


def test_defaults_resolve_the_learning_rate() -> None:
    assert Recipe().rate == 0.01
    assert Recipe(optimizer="adafactor").rate == 0.3
    assert Recipe(learning_rate=0.5).rate == 0.5


def test_lester_is_the_papers_recipe_and_gives_way_to_what_is_set() -> None:
    recipe = Recipe(name="lester", batch_size=8)
    assert (recipe.optimizer, recipe.rate, recipe.schedule, recipe.weight_decay) == ("adafactor", 0.3, "constant", 1e-5)
    assert recipe.batch_size == 8


@pytest.mark.parametrize("rate", [0, -1, 1e7, float("nan"), float("inf"), "fast", None])
def test_impossible_learning_rates_are_refused(rate: object) -> None:
    with pytest.raises(SoftPromptError, match=r"^recipe: learning_rate: .*above 0"):
        Recipe(learning_rate=rate)


@pytest.mark.parametrize("key", ["max_steps", "batch_size", "evaluate_every", "patience", "save_every"])
def test_counts_of_nothing_are_refused(key: str) -> None:
    with pytest.raises(SoftPromptError, match=f"recipe: {key}"):
        Recipe(**{key: 0})


def test_unknown_keys_are_named() -> None:
    with pytest.raises(SoftPromptError, match="recipe: learning_rat: unknown key"):
        Recipe(learning_rat=1)


def test_what_holds_single_virtual_tokens_is_off_by_default() -> None:
    recipe = Recipe()
    assert recipe.calibrate == "auto"


def test_epochs_are_steps_for_the_rows():
    assert Recipe(epochs=3, batch_size=4).for_rows(10).max_steps == 8
    assert Recipe(epochs=0.5, batch_size=8).for_rows(7).max_steps == 1
    assert Recipe(epochs=2).for_rows(80).epochs is None
    assert Recipe(max_steps=7).for_rows(80).max_steps == 7
    with pytest.raises(SoftPromptError, match="give either max_steps or epochs"):
        Recipe(epochs=1, max_steps=3)
    with pytest.raises(SoftPromptError, match="recipe: epochs"):
        Recipe(epochs=0)
