"""The official client against a server on SmolLM2-135M."""

from __future__ import annotations

import pytest

import softprompt as sp
from softprompt.serving.local import LocalEngine
from tests.serving.conftest import living
from tests.serving.test_completions import greedy

TASK = sp.Task(template="Review: {text}\nSentiment:", labels=["negative", "positive"])
TEXTS = ["a joy to watch", "the plot makes no sense at all"]


@pytest.mark.real
def test_the_official_client(tmp_path):
    base = sp.load_base("smollm2-135m", dtype="float32")
    prompt = sp.SoftPrompt.from_text(base, "Classify this review as positive or negative:")
    library = sp.PromptLibrary(tmp_path / "library")
    library.add("sentiment", sp.SoftPrompt(prompt.embeddings, prompt.card.replace(task=TASK.model_dump())))
    library.add("other", sp.SoftPrompt.from_text(base, "Answer in French:", num_virtual_tokens=8))
    with living(LocalEngine(base, state_bytes=1 << 27), library) as live:
        client = live.client()
        assert [model.id for model in client.models.list()] == ["smollm2-135m", "other", "sentiment"]
        for model in ("sentiment", "other", "smollm2-135m"):
            answer = client.completions.create(
                model=model, prompt="The capital of France is", max_tokens=4, temperature=0
            )
            assert answer.choices[0].text == greedy(base, library, model, "The capital of France is", count=4)
        chat = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6, "temperature": 0}
        whole = client.chat.completions.create(model="other", **chat)
        parts = client.chat.completions.create(model="other", stream=True, **chat)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content != ""
        found = live.post("/v1/classify", json={"model": "sentiment", "input": TEXTS}).json()["data"]
        for one, expected in zip(found, sp.predict(base, library.get("sentiment"), TASK, TEXTS), strict=True):
            assert one["label"] == expected.label
            assert one["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
