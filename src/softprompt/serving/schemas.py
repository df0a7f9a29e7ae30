"""What the API's requests and answers look like: OpenAI's shapes, and those of classification and of the prompts.

Owns the fields, their limits and their descriptions, from which the OpenAPI page is made. A field of OpenAI's that is
not supported is either unknown here, or takes the one value that means nothing. Knows nothing of engines or prompts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from softprompt.prompts.card import Card
from softprompt.tasks.task import Text

# The most answers to one request: texts, times tasks or `n`.
MOST_ANSWERS = 2048
MOST_STOPS = 16
MOST_BAD_WORDS = 256

_ModelName = Annotated[
    str,
    Field(
        description="The base's name, a prompt's name (its version that is loaded), or `name@version`.",
        examples=["sentiment", "sentiment@3"],
    ),
]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# In all of these the limits come before the validators, behind which they would be missing from the OpenAPI page.
# JSON Schema calls 2.0 an integer.
_IsWhole = BeforeValidator(_whole)
_Natural = Annotated[int, Field(ge=0), _IsWhole]
_Positive = Annotated[int, Field(ge=1), _IsWhole]
_Few = Annotated[int, Field(ge=1, le=128), _IsWhole]
_Tops = Annotated[int, Field(ge=0, le=20), _IsWhole]
_Zero = Annotated[float, Field(ge=0, le=0)]
_Stop = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(TypeAdapter(Text).validate_python)]
_Stops = Annotated[list[_Stop], Field(max_length=MOST_STOPS)]
_Ids = Annotated[list[_Natural], Field(min_length=1)]


class _Request(BaseModel):
    """Unknown fields are refused, numbers in quotes are no numbers, and neither NaN nor infinity is one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Request):
    include_usage: bool | None = Field(None, description="Send the counts of tokens as the last event.")


class ResponseFormat(_Request):
    type: Literal["text"]


class _GenerationRequest(_Request):
    model: _ModelName
    max_tokens: _Positive | None = Field(
        None, description="The most new tokens of a choice. Default: 16, less where the context has less room."
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="Default 1; 0 takes the likeliest token, and so does anything below 0.001."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the likeliest tokens that together have this probability. Default 1."
    )
    top_k: _Natural | None = Field(None, description="Sample from this many likeliest tokens; 0, the default: all.")
    n: _Few | None = Field(None, description="How many choices for each text. Default 1.")
    seed: Annotated[int, _IsWhole] | None = Field(
        None, description="The same seed and request give the same answer; choice `i` of `n` has a seed of its own."
    )
    stop: _Stop | _Stops | None = Field(
        None, description="Strings at which the answer stops, across tokens too. They are not part of it."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events while it comes.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    repetition_penalty: float | None = Field(
        None, ge=0.1, le=10, description="Above 1 makes tokens of the text and the answer less likely. Default 1."
    )
    no_repeat_ngram_size: _Natural | None = Field(
        None, description="No run of this many tokens comes twice in text and answer; 0, the default: off."
    )
    bad_words: list[_Stop] | None = Field(
        None, max_length=MOST_BAD_WORDS, description="Words that never come, at the start of a word or within."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-text token, up to `max_tokens`.")
    frequency_penalty: _Zero | None = Field(None, description="Not supported: 0.")
    presence_penalty: _Zero | None = Field(None, description="Not supported: 0.")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = Field(
        None, description="Not supported: empty."
    )
    user: str | None = Field(None, description="Without effect.")


class CompletionRequest(_GenerationRequest):
    """A text to go on with, as it stands: no template is applied."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "sentiment",
                    "prompt": "Review: a joy to watch\nSentiment:",
                    "max_tokens": 2,
                    "temperature": 0,
                }
            ]
        }
    )

    prompt: Text | Annotated[list[Text], Field(min_length=1)] | _Ids | Annotated[list[_Ids], Field(min_length=1)] = (
        Field(description="A text, texts, a text's token ids, or several texts' token ids.")
    )
    logprobs: _Tops | None = Field(
        None, description="How many of the likeliest tokens to name with each new one. Default: none."
    )
    echo: bool | None = Field(None, description="Put the text before the answer. Not together with `logprobs`.")
    best_of: _Few | None = Field(None, description="Not supported: as `n`.")
    suffix: Literal[""] | None = Field(None, description="Not supported: empty.")


class ContentPart(_Request):
    type: Literal["text"]
    text: Text


class Message(_Request):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is another word for `system`."
    )
    content: Text | Annotated[list[ContentPart], Field(min_length=1)] = Field(
        description="A text, or parts that are put together."
    )


class ChatRequest(_GenerationRequest):
    """A conversation, in the base's chat template."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "sentiment", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
            ]
        }
    )

    messages: list[Message] = Field(min_length=1)
    max_tokens: _Positive | None = Field(
        None, description="The most new tokens of a choice. Default: 256, less where the context has less room."
    )
    max_completion_tokens: _Positive | None = Field(None, description="The same as `max_tokens`.")
    logprobs: bool | None = Field(None, description="Give the new tokens' log-probabilities.")
    top_logprobs: _Tops | None = Field(
        None, description="How many of the likeliest tokens to name with each. Only with `logprobs`."
    )
    response_format: ResponseFormat | None = Field(None, description="Not supported: text.")
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Not supported: empty.")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Without effect, as there are no tools.")
    metadata: dict[str, str] | None = Field(None, description="Without effect: nothing is stored.")
    store: Literal[False] | None = Field(None, description="Not supported: false.")


class ClassifyRequest(_Request):
    """Texts to classify, each by every task that `model` names."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "sentiment", "input": "a joy to watch"},
                {"model": ["sentiment", "spam@2"], "input": ["a joy to watch", "win a prize"]},
                {"model": "entailment", "input": [{"premise": "It rains.", "hypothesis": "It is dry."}]},
            ]
        }
    )

    model: _ModelName | Annotated[list[_ModelName], Field(min_length=1)] = Field(
        description="One or many prompts whose cards hold a classification task."
    )
    input: Text | Annotated[list[Text], Field(min_length=1)] | Annotated[list[dict[str, Text]], Field(min_length=1)] = (
        Field(
            description="A text, texts, or the columns of the task's template for each row. "
            f"Texts times tasks are at most {MOST_ANSWERS}."
        )
    )
    truncate: bool | None = Field(
        None, description="Cut texts that are too long, as in training, instead of refusing them. Default: false."
    )
    user: str | None = Field(None, description="Without effect.")


class LoadRequest(_Request):
    """A prompt of the library."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "sentiment"}, {"name": "sentiment@3"}]})

    name: str = Field(description="`name` for the library's current version, or `name@version`.")


class UnloadRequest(_Request):
    """A prompt that is loaded."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "sentiment"}]})

    name: str = Field(description="`name`, or `name@version` to unload only if that is the version loaded.")


class Usage(BaseModel):
    """Counts of tokens, without virtual ones."""

    prompt_tokens: int = Field(description="Of the texts.")
    completion_tokens: int = Field(description="New ones, the end-of-text token included.")
    total_tokens: int


class TextLogprobs(BaseModel):
    """Log-probabilities, before temperature and other processing, of the tokens whose text is in the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int] = Field(description="Where each token's text begins in the choice's text, in characters.")


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = Field(
        None, description="`stop`: the end-of-text token or a stop string; null in an event that isn't the last one."
    )


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str = Field(description="What answered: `name@version`, or the base's name.")
    choices: list[TextChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = Field(description="The token's text in UTF-8; null where it is no whole character.")


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities, before temperature and other processing, of the tokens whose text is in the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = Field(description="What answered: `name@version`, or the base's name.")
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ClassificationAnswer(BaseModel):
    index: int = Field(description="Of the input.")
    model: str = Field(description="What answered: `name@version`.")
    label: str
    probabilities: dict[str, float] = Field(description="Of each of the task's labels; they sum to 1.")
    truncated: bool = Field(description="Whether the text was cut.")


class Classification(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    data: list[ClassificationAnswer] = Field(description="By input, and for each input by model, as asked for.")
    usage: Usage


class Model(BaseModel):
    """The base or a prompt that is loaded."""

    id: str = Field(description="`name@version`, or the base's name.")
    object: Literal["model"] = "model"
    created: int = Field(description="When it was loaded here, in seconds since 1970.")
    owned_by: Literal["softprompt"] = "softprompt"
    name: str
    version: int | None = Field(description="Null for the base.")
    parent: str | None = Field(description="The base's name; null for the base itself.")
    num_virtual_tokens: int
    max_model_len: int | None = Field(description="The context in tokens, virtual ones included.")
    card: Card | None = Field(description="What the prompt's file says of itself; null for the base.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class LoadedPrompt(BaseModel):
    id: str = Field(description="`name@version`.")
    name: str
    version: int
    num_virtual_tokens: int
    labels: list[str] | None = Field(description="Of its classification task; null without one.")
    loaded: int = Field(description="In seconds since 1970.")


class RefusedPrompt(BaseModel):
    name: str
    reason: str


class PromptList(BaseModel):
    object: Literal["list"] = "list"
    data: list[LoadedPrompt]
    refused: list[RefusedPrompt] = Field(description="Prompts of the library that could not be loaded, and why.")


class Status(BaseModel):
    status: Literal["ok", "ready"]


class Fault(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None


class Problem(BaseModel):
    """Whatever goes wrong has this shape."""

    error: Fault
