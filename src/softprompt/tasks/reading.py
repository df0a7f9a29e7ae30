"""How a table is to be read where that is not plain, and what its columns and labels are to a task.

Owns these options. Knows nothing of files.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from softprompt.errors import SoftPromptError
from softprompt.text import validation_line


class Reading(BaseModel):
    """How a table is read. What is None is found out from the file.

    Attributes:
        columns: the table's name for a column of the task, such as {text: subject, label: intent}; a column within a
            JSON object is OUTER.INNER.
        labels: what the table's labels are to the task, such as {"1.0": positive}.
        empty: the columns that may be empty or missing, and what stands for them then, such as {input: ""}.
        delimiter: one character between values, or "tab".
        encoding: of the text, such as "utf-16-le" or "cp1251".
        quoting: whether double quotes hold a value together, or are text; None: they do unless values are delimited
            by tabs.
        unusable: what becomes of rows without a text or with an unknown label: "refuse" them, or "skip" them.
        header: the columns' names where the file has none, or false to number them: column_1, column_2 and so on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    empty: dict[str, str] = Field(default_factory=dict)
    delimiter: str | None = None
    encoding: str | None = None
    quoting: bool | None = None
    header: bool | list[str] | None = None
    unusable: Literal["refuse", "skip"] = "refuse"

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        value = {"tab": "\t", "\\t": "\t"}.get(value or "", value)
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError(f'one character such as ";" is needed, or tab, not {value!r}')
        return value

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str | None) -> str | None:
        try:
            return None if value is None else codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"{value!r} is no encoding that Python knows, such as cp1252 or utf-16-le") from None

    @field_validator("header", mode="before")
    @classmethod
    def _check_header(cls, value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("a name is there more than once: give each column its own")
        return {"true": None, "false": False, True: None}.get(value, value) if not isinstance(value, list) else value

    def name_of(self, column: str) -> str:
        """The table's name for a column of the task."""
        return self.columns.get(column, column)

    @classmethod
    def of_card(cls, data: Mapping[str, Any] | None) -> Reading:
        """What a prompt's card says of its tables.

        Raises:
            SoftPromptError: a key is unknown or wrong.
        """
        try:
            return cls.model_validate(data or {})
        except ValidationError as error:
            raise SoftPromptError(validation_line(error, "card.json: data")) from None

    def for_card(self) -> dict[str, Any] | None:
        """What a prompt's card keeps of it: what is to be known of later tables of the same kind, too."""
        kept = {"columns", "labels", "empty", "header", "unusable"}
        return self.model_dump(include=kept, exclude_defaults=True) or None
