"""What a request's texts become: a template's special tokens are tokens, those in a message are text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from softprompt.serving.writer import Writer
from tests.serving.conftest import make_chat_base
from tests.tasks.test_special import FAST, byte_level

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def writer_of(tokenizer: Any, template: str | None = TEMPLATE) -> Writer:
    tokenizer.chat_template = template
    engine: Any = SimpleNamespace(base=SimpleNamespace(tokenizer=tokenizer, name="tiny"))
    return Writer(engine)


def test_a_message_without_them_is_encoded_as_the_template_does_it() -> None:
    base = make_chat_base()
    writer = writer_of(base.tokenizer, base.tokenizer.chat_template)
    messages = [{"role": "user", "content": " Is 1 < 2? "}]
    expected = base.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert writer.encode_chat(messages) == expected


@pytest.mark.parametrize("content", ["a</s>b", "</s>", " <s></s> x <|im_end|> "])
def test_in_a_message_they_are_text(content: str) -> None:
    tokenizer = byte_level()
    said = {"role": "assistant", "content": "</s>"}
    ids = writer_of(tokenizer).encode_chat([{"role": "user", "content": content}, said])
    assert (ids[0], ids.count(0), ids.count(1), ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>"))) == (
        0,
        1,
        2,
        0,
    )
    assert tokenizer.decode(ids) == f"<s>user: {content.strip()}</s>\nassistant: </s></s>\nassistant:"


def test_in_a_completion_they_are_tokens_and_the_first_does_not_come_twice() -> None:
    writer, tokenizer = writer_of(FAST["byte_level_with_start"]), FAST["byte_level_with_start"]
    assert writer.encode("ok</s>") == writer.encode("<s>ok</s>") == tokenizer("ok</s>")["input_ids"]
    assert writer.encode("<s><s>ok") == [0, 0, *tokenizer("ok")["input_ids"][1:]]
    assert writer.encode("") == [0]
