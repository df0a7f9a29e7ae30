"""Tiny random models and tokenizers that the whole suite shares."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softprompt.bases.base import Base
from tests.browser import chromium, new_page, page, seen  # noqa: F401


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with two specials (ids 0 and 1) and one id for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, "<pad>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_base(dtype: torch.dtype = torch.float32, seed: int = 0) -> Base:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return Base(model=model, tokenizer=make_tokenizer(), name="tiny-llama")


@pytest.fixture(autouse=True, scope="module")
def light_collections() -> Iterator[None]:
    """Let Python's garbage collector pass over what was imported until now.

    Every run ends with a collection by Accelerate, which takes longer than the run itself where PyTorch, Transformers,
    TRL and Gradio are loaded. What a module leaves behind is collected before the next one freezes it: models among it,
    which pytest itself holds until the module before has ended.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_loggers() -> Iterator[None]:
    """What a test changes in softprompt's loggers would be another test's lines that do not come: it fails itself."""
    before = _loggers()
    yield
    changed = {name: state for name, state in _loggers().items() if state != before.get(name, _NEW_LOGGER)}
    assert not changed, f"this test leaves loggers changed: {changed}"


_NEW_LOGGER = (logging.NOTSET, True, False)


def _loggers() -> dict[str, tuple[int, bool, bool]]:
    """Level, propagation and whether it is disabled, of each of softprompt's loggers."""
    found = logging.root.manager.loggerDict.items()
    ours = {name: logger for name, logger in found if isinstance(logger, logging.Logger) and "softprompt" in name}
    states = {name: (logger.level, logger.propagate, logger.disabled) for name, logger in ours.items()}
    return states | {"all": (logging.root.manager.disable, True, False)}


@contextmanager
def as_at_a_terminal() -> Iterator[None]:
    """SIGINT as a terminal has it, in this process and those that it starts: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def interruptible() -> Iterator[None]:
    with as_at_a_terminal():
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def tiny_base() -> Base:
    """A random Llama, H=32, 2 layers, float32; a new one each time, so that a test may change it."""
    return make_base()
