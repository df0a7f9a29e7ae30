"""What is to be learned: a template, a target, labels or free text, and a metric.

Owns the task's rules and how columns become text. Knows nothing of files, tokens or models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers import KINDS
from softprompt.text import shown, validation_line

LABEL_COLUMN = "label"

_PART = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<column>\w+(?:[ -]+\w+)*)\}|(?P<text>[^{}]+)|(?P<stray>[{}])")


@lru_cache(maxsize=256)
def _parts(template: str) -> tuple[tuple[str, bool], ...]:
    """The template as (literal text, False) and (column name, True), in order.

    Raises:
        ValueError: A brace that neither names a column nor is doubled.
    """
    parts = []
    for match in _PART.finditer(template):
        if match["stray"]:
            excerpt = shown(template[match.start() : match.start() + 30])
            raise ValueError(
                f"cannot read {excerpt}: name a column as {{column}}, without conversions or formats, "
                "and write a brace itself twice"
            )
        if match["column"]:
            parts.append((match["column"], True))
        else:
            parts.append((match["text"] or match["brace"][0], False))
    return tuple(parts)


def _placeholders(template: str) -> list[str]:
    return [text for text, is_column in _parts(template) if is_column]


def _columns(template: str) -> list[str]:
    return list(dict.fromkeys(_placeholders(template)))


def _fill(template: str, columns: Mapping[str, str]) -> str:
    return "".join(text for text, _ in _fill_parts(template, columns))


def _fill_parts(template: str, columns: Mapping[str, str]) -> list[tuple[str, bool]]:
    missing = [name for name in _columns(template) if name not in columns]
    if missing:
        raise SoftPromptError(f"no column {shown(missing[0])}; the columns are {shown(list(columns))}")
    return [(columns[text] if is_column else text, is_column) for text, is_column in _parts(template)]


def _encodable(text: str) -> str:
    """Refuse half a surrogate pair, which no tokenizer reads; the error is a ValueError."""
    text.encode()
    return text


def _kind(answer: object, labels: object) -> str:
    return str(answer) if answer != "auto" else "text" if labels is None else "words"


Text = Annotated[str, AfterValidator(_encodable)]


class Task(BaseModel):
    """A template, a target, labels or free text, and a metric.

    Attributes:
        template: The input, with `{column}` for each column of the data; `{{` and `}}` are braces.
        labels: The classes, as they stand in the data's column `label`; None for free text.
        target: What follows the input. Classification: text around `{label}`. Free text: names the
            columns of the data that hold the answer.
        answer: The kind of answer: `words` (the likelihood of each label's text) or `text` (free text); `auto`
            (default): chosen where the task is learned, else `words` with labels and `text` without. `head`: a head's
            scores of the labels. `tags`: a label for each word. `span`: words of the template's last column.
            `embedding`: template and target are texts that belong together.
        max_new_tokens: Free text: the most tokens that an answer may have.
        metric: `accuracy` (default) or `macro_f1` for classification; `f1` (default) or `accuracy` for tags;
            `token_f1` (default) or `exact_match` for spans;
            `exact_match` (default), `token_f1`, `rouge_l` or `bleu` for free text; `recall_at_1` (default),
            `recall_at_5`, `recall_at_10` or `mrr` for embeddings.

    Raises:
        SoftPromptError: A key is unknown, missing or wrong; the line names it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Text
    labels: list[Text] | None = None
    target: Text = " {label}"
    answer: str = "auto"
    metric: str = "accuracy"
    max_new_tokens: int = Field(default=64, ge=1)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SoftPromptError(validation_line(error, "task")) from None

    # pydantic's own mark: a Task inside another model is validated without this __init__, so that an
    # error there still names the whole path to the key.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_dict(cls, data: object, where: str = "task") -> Task:
        """The task that `data` (from a task file or a card) describes.

        Raises:
            SoftPromptError: One line that starts with `where` and names each key at fault.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SoftPromptError(validation_line(error, where)) from None

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "metric" not in data:
            kind = KINDS.get(_kind(data.get("answer", "auto"), data.get("labels")))
            return data if kind is None else {**data, "metric": kind.metrics[0]}
        return data

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if not _columns(template):
            raise ValueError("name at least one column of the data, such as {text}")
        return template

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, labels: Any) -> Any:
        if not isinstance(labels, (list, tuple)):
            return labels
        for label in labels:
            if isinstance(label, bool):
                raise ValueError(f"YAML reads yes, no, on and off as {label}: put the label in quotes")
        return [str(label) if isinstance(label, int) else label for label in labels]

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if labels is None:
            return None
        if len(labels) < 2:
            raise ValueError(f"at least 2 are needed, not {len(labels)} (leave labels out for free text)")
        if not all(label.strip() for label in labels):
            raise ValueError("a label is empty")
        repeated = [label for label in labels if labels.count(label) > 1]
        if repeated:
            raise ValueError(f"{shown(repeated[0])} is there more than once")
        if LABEL_COLUMN in _columns(info.data.get("template", "")):
            raise ValueError("the template names {label}, which would show the answer")
        return labels

    @field_validator("target")
    @classmethod
    def _check_target(cls, target: str, info: ValidationInfo) -> str:
        columns = _columns(target)
        if not columns:
            raise ValueError("name {label}, or for free text a column of the data, such as {answer}")
        if info.data.get("labels") is not None and columns != [LABEL_COLUMN]:
            raise ValueError(f"with labels the only column here is {{label}}, not {shown(columns)}")
        return target

    @field_validator("answer")
    @classmethod
    def _check_answer(cls, answer: str, info: ValidationInfo) -> str:
        if answer != "auto" and answer not in KINDS:
            raise ValueError(f"{shown(answer)} is no kind of answer: choose one of auto, {', '.join(KINDS)}")
        if answer != "auto" and "labels" in info.data and KINDS[answer].labels != (info.data["labels"] is not None):
            needed = "needs labels" if KINDS[answer].labels else "has no labels"
            raise ValueError(
                f"{answer} {needed}: leave answer out, or {'give' if KINDS[answer].labels else 'drop'} them"
            )
        return answer

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str, info: ValidationInfo) -> str:
        if "labels" not in info.data or "answer" not in info.data:
            return metric
        kind = _kind(info.data["answer"], info.data["labels"])
        known = KINDS[kind].metrics
        if metric not in known:
            what = {"text": "free text", "words": "classification", "head": "classification"}.get(kind, kind)
            raise ValueError(f"{metric} does not measure {what}: choose one of {', '.join(known)}")
        return metric

    @property
    def kind(self) -> str:
        """The kind of answer, one of `tasks.answers.KINDS`."""
        return _kind(self.answer, self.labels)

    def resolved(self, *, head: bool) -> Task:
        """The task with a kind of answer that is not `auto`: with labels `head` or `words`, else `text`."""
        if self.answer != "auto":
            return self
        return self.model_copy(update={"answer": "head" if head and self.labels is not None else self.kind})

    def answered_by(self, kind: str) -> Task:
        """The task with one label for a text answered by `kind`, such as "words" where there is no head; others as they
        are."""
        return self if self.labels is None or self.kind == "tags" else self.model_copy(update={"answer": kind})

    @property
    def columns(self) -> list[str]:
        """The columns that the template names, in order, each once."""
        return _columns(self.template)

    @property
    def placeholders(self) -> list[str]:
        """The columns that the template names, in order, as often as it names them."""
        return _placeholders(self.template)

    @property
    def target_columns(self) -> list[str]:
        """The columns that the target names; `["label"]` for classification."""
        return _columns(self.target)

    @property
    def suffix(self) -> str:
        """The template's own words after its last column: what every target follows."""
        suffix = ""
        for text, is_column in _parts(self.template):
            suffix = "" if is_column else suffix + text
        return suffix

    def render(self, columns: Mapping[str, str]) -> str:
        """The template with each column's value put in as it is; braces in a value stay braces.

        Raises:
            SoftPromptError: A column is not there.
        """
        return _fill(self.template, columns)

    def parts(self, columns: Mapping[str, str]) -> list[tuple[str, bool]]:
        """What `render` joins, each piece with whether it is a column's value.

        Raises:
            SoftPromptError: A column is not there.
        """
        return _fill_parts(self.template, columns)

    def target_parts(self, target: str) -> list[tuple[str, bool]]:
        """A rendered target in pieces, each with whether it is a column's value. Labels are the task's own words."""
        if self.labels is not None:
            return [(target, False)]
        pieces = _parts(self.target)
        wanted = "".join("(.*?)" if is_column else f"({re.escape(text)})" for text, is_column in pieces)
        found = re.fullmatch(wanted, target, re.DOTALL)
        if found is None:
            return [(target, True)]
        return [(text, is_column) for text, (_, is_column) in zip(found.groups(), pieces, strict=True)]

    def render_target(self, columns: Mapping[str, str]) -> str:
        """The target with its columns filled in; for classification `columns` is `{"label": LABEL}`.

        Raises:
            SoftPromptError: A column is not there.
        """
        return _fill(self.target, columns)
