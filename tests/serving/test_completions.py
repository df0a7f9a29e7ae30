"""Generated text, asked for by the official client."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import openai
import pytest
import torch

from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel

TEXT = "Text: so so\nMood:"
GREEDY = {"temperature": 0, "max_tokens": 6}


def greedy(base, library, model, text, count=6):
    """The reference's text."""
    prompts = [] if model == base.name else [library.get(model)]
    ids = text if isinstance(text, list) else base.tokenizer(text)["input_ids"]
    tokens = generate(PromptedModel(base, prompts), [ids], max_new_tokens=count, ends=base.end_ids)
    return base.tokenizer.decode(tokens[0], skip_special_tokens=True)


def chat_text(messages):
    return "".join(f"{role}: {content}\n" for role, content in messages) + "assistant:"


def refused(call, status=400):
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert "\n" not in caught.value.body["message"]
    return caught.value.body


class TestCompletions:
    @pytest.mark.parametrize(
        ("model", "resolved"),
        [("mood", "mood@2"), ("mood@2", "mood@2"), ("bare", "bare@1"), ("tiny-llama", "tiny-llama")],
    )
    def test_greedy_is_what_generate_gives(self, client, base, library, model, resolved):
        answer = client.completions.create(model=model, prompt=TEXT, **GREEDY)
        assert answer.choices[0].text == greedy(base, library, resolved, TEXT)
        assert answer.model == resolved
        assert answer.object == "text_completion"
        assert answer.usage.prompt_tokens == len(base.tokenizer(TEXT)["input_ids"])
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_several_prompts_texts_and_ids(self, client, base, library):
        texts = ["one", "another one", "one"]
        expected = [greedy(base, library, "mood", text) for text in texts]
        ids = [base.tokenizer(text)["input_ids"] for text in texts]
        for prompt in (texts, ids):
            answer = client.completions.create(model="mood", prompt=prompt, **GREEDY)
            assert [choice.text for choice in answer.choices] == expected
            assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert client.completions.create(model="mood", prompt=ids[1], **GREEDY).choices[0].text == expected[1]

    def test_an_empty_text_follows_the_prompt_alone(self, client, base, library):
        text = client.completions.create(model="mood", prompt="", **GREEDY).choices[0].text
        assert text == greedy(base, library, "mood", [])

    def test_sixteen_tokens_unless_said(self, client):
        answer = client.completions.create(model="mood", prompt=TEXT, temperature=0, extra_body={"ignore_eos": True})
        assert answer.usage.completion_tokens == 16
        assert answer.choices[0].finish_reason == "length"

    def test_streamed_is_whole(self, client):
        asked = {"model": "mood", "prompt": ["one", "another"], "max_tokens": 12, "temperature": 0, "logprobs": 1}
        whole = client.completions.create(**asked)
        for usage in (True, False):
            events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": usage}))
            if usage:
                *events, last = events
                assert last.choices == []
                assert last.usage == whole.usage
            for choice in whole.choices:
                parts = [event.choices[0] for event in events if event.choices[0].index == choice.index]
                assert "".join(part.text for part in parts) == choice.text
                assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
                offsets = [offset for part in parts for offset in part.logprobs.text_offset]
                assert offsets == choice.logprobs.text_offset
            assert {event.model for event in events} == {"mood@2"}

    def test_the_wire_format(self, live):
        body = {"model": "mood", "prompt": "one", "max_tokens": 2, "stream": True}
        with live.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])

    @pytest.mark.parametrize("stream", [False, True])
    def test_stop_strings(self, client, base, library, stream):
        whole = greedy(base, library, "mood", TEXT, 20)
        places = [i for i in range(2, len(whole) - 2) if "\ufffd" not in whole[i : i + 2]]
        start = next(i for i in places if whole.find(whole[i : i + 2]) == i)
        stop = [whole[start : start + 2], "never"]  # two tokens of this tokenizer
        asked = {"model": "mood", "prompt": TEXT, "max_tokens": 20, "temperature": 0, "stop": stop}
        if stream:
            choices = [event.choices[0] for event in client.completions.create(**asked, stream=True)]
        else:
            choices = client.completions.create(**asked).choices
        assert "".join(choice.text for choice in choices) == whole[:start]
        assert choices[-1].finish_reason == "stop"

    def test_a_stop_string_ends_the_work(self, live, client, base, library):
        whole = greedy(base, library, "mood", TEXT, 20)
        before = live.engine.figures()["new_tokens_total"]
        usage = client.completions.create(model="mood", prompt=TEXT, max_tokens=200, temperature=0, stop=whole[0]).usage
        assert usage.completion_tokens < 10
        assert live.engine.figures()["new_tokens_total"] - before < 20

    def test_echo(self, client, base, library):
        ids = base.tokenizer("two")["input_ids"]
        for prompt, text in (("one", "one"), ([ids], "two")):
            answer = client.completions.create(model="mood", prompt=prompt, echo=True, n=2, **GREEDY)
            assert [choice.text for choice in answer.choices] == [text + greedy(base, library, "mood", text)] * 2
        events = client.completions.create(model="mood", prompt="one", echo=True, stream=True, **GREEDY)
        assert "".join(event.choices[0].text for event in events) == "one" + greedy(base, library, "mood", "one")

    def test_logprobs_are_the_models(self, client, base, library):
        answer = client.completions.create(model="mood", prompt=TEXT, logprobs=3, max_tokens=3, temperature=0)
        found = answer.choices[0].logprobs
        ids = base.tokenizer(TEXT)["input_ids"]
        words = base.model.get_input_embeddings()(torch.tensor([ids]))
        row = torch.cat([library.get("mood").embeddings[None], words], 1)
        expected, tokens = base.model(inputs_embeds=row).logits[0, -1].log_softmax(-1).topk(3)
        assert found.token_logprobs[0] == pytest.approx(float(expected[0]), abs=1e-4)
        assert max(found.top_logprobs[0].values()) == found.token_logprobs[0]
        assert sum(map(math.exp, found.top_logprobs[0].values())) <= 1 + 1e-6
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
        assert found.tokens[0] == base.tokenizer.decode(tokens[:1])

    def test_logprobs_of_what_is_cut_off_are_not_given(self, client, base, library):
        whole = greedy(base, library, "mood", TEXT, 20)
        places = [i for i in range(2, len(whole)) if whole[i] != "\ufffd" and whole.find(whole[i]) == i]
        answer = client.completions.create(
            model="mood", prompt=TEXT, max_tokens=20, temperature=0, stop=whole[places[0]], logprobs=0
        )
        assert answer.choices[0].text == whole[: places[0]]
        assert max(answer.choices[0].logprobs.text_offset) < places[0]

    def test_n_choices_have_seeds_of_their_own(self, client):
        asked = {"model": "mood", "prompt": TEXT, "max_tokens": 8, "seed": 7}
        choices = [choice.text for choice in client.completions.create(**asked, n=4).choices]
        assert len(set(choices)) > 1
        assert [choice.text for choice in client.completions.create(**asked, n=4).choices] == choices
        assert client.completions.create(**asked).choices[0].text == choices[0]
        both = client.completions.create(**{**asked, "prompt": ["other", TEXT]}, n=2).choices
        assert [choice.text for choice in both[2:]] == choices[:2]
        assert [choice.index for choice in both] == [0, 1, 2, 3]

    @pytest.mark.parametrize("seed", [0, -1, 2**63, -(10**40)])
    def test_any_whole_number_is_a_seed(self, client, seed):
        asked = {"model": "mood", "prompt": TEXT, "max_tokens": 8, "seed": seed, "n": 2}
        assert client.completions.create(**asked).choices == client.completions.create(**asked).choices

    def test_without_a_seed_answers_differ(self, client):
        answers = client.completions.create(model="mood", prompt=TEXT, max_tokens=8, n=4, temperature=2).choices
        assert len({choice.text for choice in answers}) > 1

    def test_what_narrows_the_choice_narrows_it(self, client, base, library):
        expected = greedy(base, library, "mood", TEXT)
        narrow = [{"top_p": 1e-6}, {"temperature": 1e-9}, {"extra_body": {"top_k": 1}}]
        for sampling in narrow:
            answer = client.completions.create(model="mood", prompt=TEXT, max_tokens=6, **sampling)
            assert answer.choices[0].text == expected

    def test_bad_words_and_repetition(self, client, base, library):
        text = greedy(base, library, "mood", TEXT, 12)
        letter = next(letter for letter in text if letter != "\ufffd" and not letter.isspace())
        asked = {"model": "mood", "prompt": TEXT, "max_tokens": 12, "temperature": 0}
        for extra in ({"bad_words": [letter]}, {"no_repeat_ngram_size": 1}):
            answer = client.completions.create(**asked, extra_body=extra).choices[0].text
            assert answer != text
            assert letter not in answer or "bad_words" not in extra
        assert client.completions.create(**asked, extra_body={"repetition_penalty": 9.0}).choices[0].text != text

    def test_many_at_a_time_are_those_alone(self, client, base, library):
        jobs = [
            (model, f"{model} {i}") for i in range(4) for model in ("mood", "topic", "colour", "bare", "tiny-llama")
        ]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda job: client.completions.create(model=job[0], prompt=job[1], **GREEDY), jobs))
        assert [a.choices[0].text for a in answers] == [greedy(base, library, *job) for job in jobs]


class TestChat:
    MESSAGES = (("system", "Be brief."), ("user", "So so."))

    def ask(self, client, **more):
        messages = [{"role": role, "content": content} for role, content in self.MESSAGES]
        return client.chat.completions.create(**{"model": "mood", "messages": messages, **GREEDY, **more})

    def test_greedy_is_what_generate_gives_behind_the_template(self, client, base, library):
        text = chat_text(self.MESSAGES)
        for model in ("mood", "tiny-llama"):
            answer = self.ask(client, model=model)
            assert answer.choices[0].message.content == greedy(base, library, model, text)
            assert answer.choices[0].message.role == "assistant"
        assert answer.usage.prompt_tokens == len(base.tokenizer(text)["input_ids"])

    def test_parts_and_the_developer(self, client):
        parts = [{"type": "text", "text": "So "}, {"type": "text", "text": "so."}]
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        assert self.ask(client, messages=messages).choices == self.ask(client).choices

    def test_streamed_is_whole(self, client):
        asked = {"logprobs": True, "top_logprobs": 2, "n": 2, "seed": 3, "temperature": 1, "max_tokens": 9}
        whole = self.ask(client, **asked)
        *events, last = self.ask(client, **asked, stream=True, stream_options={"include_usage": True})
        assert last.usage == whole.usage
        for choice in whole.choices:
            parts = [event.choices[0] for event in events if event.choices[0].index == choice.index]
            assert "".join(part.delta.content for part in parts) == choice.message.content
            assert parts[-1].finish_reason == choice.finish_reason
            tokens = [token for part in parts for token in part.logprobs.content]
            assert tokens == choice.logprobs.content

    def test_logprobs(self, client):
        found = self.ask(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
        for token in found:
            assert len(token.top_logprobs) == 3
            assert token.logprob == token.top_logprobs[0].logprob
            assert bytes(token.bytes).decode(errors="replace") == token.token
        assert self.ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
        assert self.ask(client).choices[0].logprobs is None

    def test_max_completion_tokens_and_the_default(self, client, base):
        assert self.ask(client, max_tokens=None, max_completion_tokens=2).usage.completion_tokens <= 2
        answer = self.ask(client, max_tokens=None, extra_body={"ignore_eos": True})
        virtual = 6
        assert answer.usage.total_tokens == base.max_positions - virtual  # less than 256 fit

    def test_a_base_without_a_template(self, live, client, base, monkeypatch):
        monkeypatch.setattr(base.tokenizer, "chat_template", None)
        assert "/v1/completions" in refused(lambda: self.ask(client))["message"]

    def test_what_the_template_refuses(self, client):
        error = refused(lambda: self.ask(client, messages=[{"role": "assistant", "content": "Hi"}]))
        assert "the user begins" in error["message"]


@pytest.fixture(scope="module")
def refusing(server):
    with server.client() as client:
        yield client


class TestRefused:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("frequency_penalty", 0.5),
            ("presence_penalty", -0.5),
            ("logit_bias", {"1": 5}),
            ("best_of", 3),
            ("suffix", "end"),
            ("max_tokens", 0),
            ("max_tokens", -1),
            ("max_tokens", "5"),
            ("max_tokens", 1.5),
            ("max_tokens", True),
            ("temperature", -0.1),
            ("temperature", 2.1),
            ("temperature", "hot"),
            ("top_p", 0),
            ("top_p", 1.1),
            ("n", 0),
            ("n", 129),
            ("seed", 0.5),
            ("stop", ""),
            ("stop", ["a", ""]),
            ("stop", 5),
            ("stop", ["x"] * 17),
            ("logprobs", 21),
            ("top_k", -2),
            ("min_p", True),
            ("repetition_penalty", 0),
            ("repetition_penalty", 11),
            ("bad_words", ["a", 5]),
            ("stream_options", {"include_usage": True}),
            ("stream", "yes"),
            ("tools", []),
            ("prompt", []),
            ("prompt", [[]]),
            ("prompt", ["a", 5]),
            ("prompt", [5, "a"]),
            ("prompt", [-5]),
            ("prompt", {"text": "a"}),
            ("prompt", None),
            ("model", 5),
            ("model", None),
            ("nonsense", 5),
        ],
    )
    def test_a_field_of_a_completion(self, server, field, value):
        answer = server.post("/v1/completions", json={"model": "mood", "prompt": "a", field: value})
        error = answer.json()["error"]
        assert answer.status_code == 400, error
        assert error["param"].split(".")[0] == field
        assert field in error["message"]
        assert error["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("messages", []),
            ("messages", "hello"),
            ("messages", [{"role": "user"}]),
            ("messages", [{"role": "tool", "content": "a"}]),
            ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]),
            ("tools", [{"type": "function"}]),
            ("tool_choice", "required"),
            ("response_format", {"type": "json_object"}),
            ("store", True),
            ("top_logprobs", 2),
            ("logprobs", 2),
            ("max_completion_tokens", 3),
            ("functions", [{"name": "f"}]),
            ("modalities", ["audio"]),
            ("prompt", "a"),
        ],
    )
    def test_a_field_of_a_chat(self, server, field, value):
        body = {"model": "mood", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, field: value}
        answer = server.post("/v1/chat/completions", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400, error
        assert error["param"].split(".")[0] in (field, "max_tokens")
        assert field in error["message"]

    def test_harmless_fields(self, server):
        body = {
            "model": "mood",
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 2,
            "user": "me",
            "metadata": {"a": "b"},
            "store": False,
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
            "logit_bias": {},
            "tools": [],
            "tool_choice": "none",
            "response_format": {"type": "text"},
            "n": None,
        }
        assert server.post("/v1/chat/completions", json=body).status_code == 200

    def test_a_whole_number_may_be_written_with_a_point(self, server):
        body = {"model": "mood", "prompt": [5.0, 6], "max_tokens": 2.0, "seed": 1e3}
        assert server.post("/v1/completions", json=body).status_code == 200

    def test_the_message_names_the_place(self, server):
        body = {"model": "mood", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 5}]}
        message = server.post("/v1/chat/completions", json=body).json()["error"]["message"]
        assert message == "messages.1.content: should be a valid string, not 5"

    @pytest.mark.parametrize("name", ["nobody", "mood@1", "mood@", "mood@02", "@2", "", "../../etc/passwd", "MOOD"])
    def test_an_unknown_model(self, refusing, name):
        error = refused(lambda: refusing.completions.create(model=name, prompt="a"), 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"

    @pytest.mark.parametrize("stream", [False, True])
    def test_text_beyond_the_context_says_both_lengths(self, refusing, base, stream):
        def ask(text, count):
            return refusing.completions.create(model="mood", prompt=text, max_tokens=count, stream=stream)

        error = refused(lambda: ask("x" * 300, 1))
        assert "300 tokens" in error["message"]
        assert str(base.max_positions) in error["message"]
        assert error["code"] == "context_length_exceeded"
        for count in (241, 10**30):
            error = refused(partial(ask, "x" * 10, count))
            assert str(count) in error["message"]
            assert "at most 240" in error["message"]

    def test_a_conversation_beyond_the_context(self, refusing):
        messages = [{"role": "user", "content": "x" * 300}]
        error = refused(lambda: refusing.chat.completions.create(model="mood", messages=messages))
        assert "at least one" in error["message"]

    def test_exactly_as_long_as_the_context(self, refusing):
        answer = refusing.completions.create(
            model="mood", prompt="x" * 245, max_tokens=5, extra_body={"ignore_eos": True}
        )
        assert answer.usage.total_tokens == 250

    def test_the_default_fits_what_room_there_is(self, refusing):
        answer = refusing.completions.create(model="mood", prompt=["x" * 240, "x"], extra_body={"ignore_eos": True})
        assert answer.usage.completion_tokens == 2 * 10

    def test_no_text_on_the_base_alone(self, refusing):
        assert "no tokens" in refused(lambda: refusing.completions.create(model="tiny-llama", prompt=""))["message"]

    def test_ids_that_are_no_tokens(self, refusing):
        error = refused(lambda: refusing.completions.create(model="mood", prompt=[[5], [258]]))
        assert "token 258" in error["message"]

    def test_too_many_texts(self, refusing):
        error = refused(lambda: refusing.completions.create(model="mood", prompt=["a"] * 10_000))
        assert "2048" in error["message"]
        error = refused(lambda: refusing.completions.create(model="mood", prompt=["a"] * 1000, n=3))
        assert "3000 answers" in error["message"]
