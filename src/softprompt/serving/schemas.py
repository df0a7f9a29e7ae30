"""What the API's requests and answers look like: OpenAI's shapes, and those of classification and of the prompts.

Owns the fields, their limits and their descriptions, from which the OpenAPI page is made. A field of OpenAI's or vLLM's
that is not supported is either unknown here, or takes the values that mean nothing; null is absence. A wrong request
fails at its first fault in a list, before the rest is looked at. Knows nothing of engines or prompts.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    Tag,
    TypeAdapter,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from softprompt.prompts.card import Card
from softprompt.tasks.task import Text

# The most answers to one request: texts, times tasks or `n`.
MOST_ANSWERS = 2048
MOST_STOPS = 16
MOST_BAD_WORDS = 256
_MOST_FIELDS = 128  # of an object
_MOST_IDS = 1 << 20
_MOST_MESSAGES = 4096

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


class _FirstFault(FailFast):
    """pydantic's own, which a union cannot have, as it has no hash."""

    def __hash__(self) -> int:
        return hash(type(self))


_FIRST_FAULT = _FirstFault()
_Stop = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(TypeAdapter(Text).validate_python)]
_Stops = Annotated[list[_Stop], _FIRST_FAULT, Field(max_length=MOST_STOPS)]
_Ids = Annotated[list[_Natural], _FIRST_FAULT, Field(min_length=1, max_length=_MOST_IDS)]
_Texts = Annotated[list[Text], _FIRST_FAULT, Field(min_length=1, max_length=MOST_ANSWERS)]
_Columns = Annotated[dict[str, Text], Field(max_length=_MOST_FIELDS)]


_KINDS: dict[type, str] = {
    int: "token ids",
    float: "token ids",
    list: "lists of token ids",
    dict: "many rows",
}


def _kind(value: Any) -> str:
    """What a value that may be one text or many is meant to be, by its first element."""
    if isinstance(value, list):
        first = value[0] if value else None
        return _KINDS.get(type(first), "many texts")
    return "one text"


class _Only:
    """Of a field that is not supported: the values that mean nothing. What would change the answer is refused.

    Args:
        values: as JSON has them.
    """

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": list(self._values)}

    def _check(self, value: Any) -> Any:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self._values):
            words = " or ".join(json.dumps(one) for one in self._values)
            raise PydanticCustomError(
                "not_supported", "is not supported: leave it out, or send {words}", {"words": words}
            )
        return value


def _examples(*bodies: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


_WITHOUT_EFFECT = "Without effect."
_NOT_SUPPORTED = "Not supported."


class _Request(BaseModel):
    """Unknown fields are refused, numbers in quotes are no numbers, and neither NaN nor infinity is one.

    Null is absence, as in what OpenAI's clients make of an answer.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        given = {name: value for name, value in fields.items() if value is not None}
        if len(given) > _MOST_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "has {count} fields: at most {most} can be",
                {"count": len(given), "most": _MOST_FIELDS},
            )
        return given


class StreamOptions(_Request):
    include_usage: bool | None = Field(None, description="Send the counts of tokens as the last event.")
    continuous_usage_stats: Annotated[Any, _Only(False)] = Field(None, description=_NOT_SUPPORTED)
    include_obfuscation: bool | None = Field(None, description=_WITHOUT_EFFECT)


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
    top_k: Annotated[int, Field(ge=-1), _IsWhole] | None = Field(
        None, description="Sample from this many likeliest tokens; 0, the default, and -1: all."
    )
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
    bad_words: Annotated[list[_Stop], _FIRST_FAULT] | None = Field(
        None, max_length=MOST_BAD_WORDS, description="Words that never come, at the start of a word or within."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-text token, up to `max_tokens`.")
    frequency_penalty: Annotated[Any, _Only(0)] = Field(None, description=_NOT_SUPPORTED)
    presence_penalty: Annotated[Any, _Only(0)] = Field(None, description=_NOT_SUPPORTED)
    min_p: Annotated[Any, _Only(0)] = Field(None, description=_NOT_SUPPORTED)
    min_tokens: Annotated[Any, _Only(0)] = Field(None, description=_NOT_SUPPORTED)
    logit_bias: Annotated[Any, _Only({})] = Field(None, description=_NOT_SUPPORTED)
    best_of: _Few | None = Field(None, description="Not supported: as `n`.")
    user: str | None = Field(None, description=_WITHOUT_EFFECT)
    metadata: Annotated[dict[str, str], Field(max_length=_MOST_FIELDS)] | None = Field(
        None, description="Without effect: nothing is stored."
    )
    store: Annotated[Any, _Only(False)] = Field(None, description="Not supported: nothing is stored.")
    service_tier: Annotated[Any, _Only("auto", "default")] = Field(None, description=_WITHOUT_EFFECT)
    prompt_cache_key: str | None = Field(None, description=_WITHOUT_EFFECT)
    safety_identifier: str | None = Field(None, description=_WITHOUT_EFFECT)


_PROMPT_KINDS = "should be a text, a list of texts, a list of token ids, or a list of such lists"


_TextsOrIds = Annotated[
    Annotated[Text, Tag("one text")]
    | Annotated[_Texts, Tag("many texts")]
    | Annotated[_Ids, Tag("token ids")]
    | Annotated[list[_Ids], _FIRST_FAULT, Field(min_length=1, max_length=MOST_ANSWERS), Tag("lists of token ids")],
    Discriminator(_kind, custom_error_type="prompt", custom_error_message=_PROMPT_KINDS),
]


class CompletionRequest(_GenerationRequest):
    """A text to go on with, as it stands: no template is applied."""

    model_config = _examples(
        {
            "model": "sentiment",
            "prompt": "Review: a joy to watch\nSentiment:",
            "max_tokens": 2,
            "temperature": 0,
        }
    )

    prompt: _TextsOrIds = Field(description="A text, texts, a text's token ids, or several texts' token ids.")
    max_tokens: _Natural | None = Field(
        None,
        description="The most new tokens of a choice. Default: 16, less where the context has less room; 0 only with "
        "`echo`.",
    )
    logprobs: _Tops | None = Field(
        None,
        description="How many of the likeliest tokens to name with each new one, and with `echo` with each of "
        "the text. Default: none.",
    )
    echo: bool | None = Field(None, description="Put the text before the answer.")
    suffix: Annotated[Any, _Only("")] = Field(None, description=_NOT_SUPPORTED)


class ContentPart(_Request):
    type: Literal["text"]
    text: Text


class Message(_Request):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is another word for `system`."
    )
    content: Annotated[
        Annotated[Text, Tag("one text")]
        | Annotated[
            list[ContentPart], _FIRST_FAULT, Field(min_length=1, max_length=_MOST_MESSAGES), Tag("content parts")
        ],
        Discriminator(lambda value: "content parts" if isinstance(value, list) else "one text"),
    ] = Field(description="A text, or parts that are put together.")
    name: str | None = Field(None, description=_WITHOUT_EFFECT)
    tool_calls: Annotated[Any, _Only([])] = Field(None, description=_NOT_SUPPORTED)
    annotations: Annotated[Any, _Only([])] = Field(None, description=_NOT_SUPPORTED)


class ChatRequest(_GenerationRequest):
    """A conversation, in the base's chat template."""

    model_config = _examples(
        {"model": "sentiment", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    )

    messages: Annotated[list[Message], _FIRST_FAULT] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_tokens: _Positive | None = Field(
        None, description="The most new tokens of a choice. Default: 256, less where the context has less room."
    )
    max_completion_tokens: _Positive | None = Field(None, description="The same as `max_tokens`.")
    logprobs: bool | None = Field(None, description="Give the new tokens' log-probabilities.")
    top_logprobs: _Tops | None = Field(
        None, description="How many of the likeliest tokens to name with each. Only with `logprobs`."
    )
    response_format: Annotated[Any, _Only({"type": "text"})] = Field(None, description=_NOT_SUPPORTED)
    tools: Annotated[Any, _Only([])] = Field(None, description=_NOT_SUPPORTED)
    tool_choice: Annotated[Any, _Only("none", "auto")] = Field(
        None, description="Without effect, as there are no tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="Without effect, as there are no tools.")
    functions: Annotated[Any, _Only([])] = Field(None, description=_NOT_SUPPORTED)
    function_call: Annotated[Any, _Only("none", "auto")] = Field(
        None, description="Without effect, as there are no functions."
    )
    modalities: Annotated[Any, _Only(["text"])] = Field(None, description=_NOT_SUPPORTED)


_INPUT_KINDS = "should be a text, a list of texts, or a list of rows, each an object of the template's columns"
_Rows = Annotated[
    Annotated[Text, Tag("one text")]
    | Annotated[_Texts, Tag("many texts")]
    | Annotated[list[_Columns], _FIRST_FAULT, Field(min_length=1, max_length=MOST_ANSWERS), Tag("many rows")],
    Discriminator(_kind, custom_error_type="input", custom_error_message=_INPUT_KINDS),
]


class ClassifyRequest(_Request):
    """Texts to classify, each by every task that `model` names."""

    model_config = _examples(
        {"model": "sentiment", "input": "a joy to watch"},
        {"model": ["sentiment", "spam@2"], "input": ["a joy to watch", "win a prize"]},
        {"model": "entailment", "input": [{"premise": "It rains.", "hypothesis": "It is dry."}]},
    )

    model: Annotated[
        Annotated[_ModelName, Tag("one text")]
        | Annotated[list[_ModelName], _FIRST_FAULT, Field(min_length=1, max_length=MOST_ANSWERS), Tag("many texts")],
        Discriminator(lambda value: "many texts" if isinstance(value, list) else "one text"),
    ] = Field(description="One or many prompts whose cards hold a classification task.")
    input: _Rows = Field(
        description="A text, texts, or the columns of the task's template for each row. "
        f"Texts times tasks are at most {MOST_ANSWERS}."
    )
    truncate: bool | None = Field(
        None, description="Cut texts that are too long, as in training, instead of refusing them. Default: false."
    )
    user: str | None = Field(None, description="Without effect.")


class PredictRequest(_Request):
    """Rows of a prompt's own task, with labels or free text."""

    model_config = _examples(
        {"model": "sentiment@2", "input": ["a joy to watch", "never again"]},
        {"model": "summary", "input": [{"article": "It rained all day."}], "stream": True},
    )

    model: _ModelName = Field(
        description="A prompt's name (its version that is loaded), or `name@version`, which need not be loaded."
    )
    input: _Rows = Field(
        description="A text, texts, or the columns of the task's template for each row. "
        "A prompt without a task goes on with the text."
    )
    without_prompt: bool | None = Field(
        None, description="Let the base alone answer, with the task's template and labels. Default: false."
    )
    stream: bool | None = Field(
        None, description="Send the answers as server-sent events while they come, each as far as it is."
    )


class EmbeddingRequest(_Request):
    """Texts to embed, as they stand: no template is applied."""

    model_config = _examples({"model": "search", "input": ["what do dogs eat?", "Dogs are fed twice a day."]})

    model: _ModelName
    input: _TextsOrIds = Field(description="A text, texts, a text's token ids, or several texts' token ids.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`base64` is of little-endian float32 numbers. Default: `float`."
    )
    dimensions: _Positive | None = Field(None, description="As many as the base has, which is the default.")
    user: str | None = Field(None, description=_WITHOUT_EFFECT)


class LoadRequest(_Request):
    """A prompt of the library."""

    model_config = _examples({"name": "sentiment"}, {"name": "sentiment@3"})

    name: str = Field(description="`name` for the library's current version, or `name@version`.")


class UnloadRequest(_Request):
    """A prompt that is loaded."""

    model_config = _examples({"name": "sentiment"})

    name: str = Field(description="`name`, or `name@version` to unload only if that is the version loaded.")


class Usage(BaseModel):
    """Counts of tokens, without virtual ones."""

    prompt_tokens: int = Field(description="Of the texts.")
    completion_tokens: int = Field(description="New ones, the end-of-text token included.")
    total_tokens: int


class TextLogprobs(BaseModel):
    """Log-probabilities, before temperature and other processing, of the tokens whose text is in the answer."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(
        description="Null for the first token of an echoed text that has nothing before it."
    )
    top_logprobs: list[dict[str, float] | None] | None
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
    bytes: list[int] | None = Field(
        description="The token in UTF-8, of a part of a character too; null where the vocabulary does not tell."
    )


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


class Prediction(BaseModel):
    """The answer to a row: a label with probabilities, free text, tags, a span of the text, or an embedding."""

    index: int = Field(description="Of the input.")
    label: str | None = Field(default=None, description="The likeliest; only of a task with labels.")
    probabilities: dict[str, float] | None = Field(default=None, description="Of each label; they sum to 1.")
    output: str | None = Field(
        default=None,
        description="The text, or in an event as much of it as there is; the tags of its words; the span.",
    )
    embedding: list[float] | None = Field(default=None, description="Its squares sum to 1.")
    truncated: bool = Field(description="Whether the text was cut to fit the context.")


class Embedding(BaseModel):
    """A text as a vector."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Of the input.")
    embedding: list[float] | str = Field(description="Its squares sum to 1; in base64 where that is asked for.")


class EmbeddingUsage(BaseModel):
    """Counts of tokens, without virtual ones."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding] = Field(description="By input.")
    model: str = Field(description="What answered: `name@version`, or the base's name.")
    usage: EmbeddingUsage


class Predictions(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str = Field(description="What answered: `name@version`, or the base's name.")
    data: list[Prediction] = Field(description="By input.")
    usage: Usage


class Model(BaseModel):
    """The base or a prompt that is loaded."""

    id: str = Field(description="The prompt's name, which stays whatever version is loaded, or the base's name.")
    object: Literal["model"] = "model"
    created: int = Field(description="When it was loaded here, in seconds since 1970.")
    owned_by: Literal["softprompt"] = "softprompt"
    name: str
    version: int | None = Field(description="Null for the base.")
    parent: str | None = Field(description="The base's name; null for the base itself.")
    num_virtual_tokens: int
    max_model_len: int | None = Field(description="The tokens of text and answer that fit the context.")
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


class LibraryVersion(BaseModel):
    id: str = Field(description="`name@version`.")
    name: str
    version: int
    current: bool = Field(description="Whether the name alone stands for it in the library.")
    loaded: bool
    num_virtual_tokens: int
    bytes: int = Field(description="Of its files.")
    card: Card = Field(description="What the prompt's file says of itself.")


class Library(BaseModel):
    object: Literal["list"] = "list"
    data: list[LibraryVersion] = Field(description="By name, the oldest version first.")
    refused: list[RefusedPrompt] = Field(description="Prompts that are damaged or could not be loaded, and why.")


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
