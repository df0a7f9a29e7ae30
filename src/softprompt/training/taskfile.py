"""The task file: one YAML file that says what to learn, from which data, on which base, from where and how.

Owns the file's keys, their rules and what its paths are relative to. Knows no folder of a run and no command; the
rules of a task and of a recipe are their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
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

from softprompt.bases.base import Base
from softprompt.bases.reading import EMBEDDED
from softprompt.errors import SoftPromptError
from softprompt.prompts import names
from softprompt.prompts.prompt import SoftPrompt
from softprompt.prompts.starts import examples
from softprompt.tasks.forms import FORMS
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import Row, find_labels, load_rows
from softprompt.tasks.splits import check_trainable, with_validation
from softprompt.tasks.task import LABEL_COLUMN, Task
from softprompt.tasks.unpacking import STDIN
from softprompt.text import shown, validation_line
from softprompt.training.recipe import Recipe

_VIRTUAL_TOKENS = 16
# Keys whose values, and those within them, are text as it stands in the file.
_TEXT = ("labels", "columns", "empty", "delimiter", "header")
# The way to start that each of the prompt's other keys belongs to.
_BELONGS_TO = {
    "init_text": "text",
    "spread": "text",
    "init_from": "prompt",
    "most_common": "vocabulary",
    "distribution": "random",
}


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", ""))


def _from_here(path: str, info: ValidationInfo) -> str:
    return path if path.startswith("hub:") or path in STDIN else str(_folder(info) / Path(path).expanduser())


_Path = Annotated[str, Field(min_length=1), AfterValidator(_from_here)]
_Paths = _Path | Annotated[list[_Path], Field(min_length=1)]


class Data(Reading):
    """Where the rows are: what `load_rows` reads, and how, see `Reading`.

    Attributes:
        train: the training rows; a file, a pattern, or a list of these.
        validation: the validation rows, or the fraction of the training rows to set aside; "auto": a tenth of them,
            where that is enough; None: there are none.
        test: rows to measure the trained prompt on; None: it isn't.
    """

    train: _Paths
    validation: Literal["auto"] | _Paths | float | None = "auto"
    test: _Paths | None = None

    @field_validator("train", "test", mode="before")
    @classmethod
    def _check_files(cls, value: Any, info: ValidationInfo) -> Any:
        files = value if isinstance(value, list) and value else [value]
        if (value is None and info.field_name == "test") or all(isinstance(one, str) and one for one in files):
            return value
        raise ValueError(f"a file or a list of files is needed, not {shown(value)}")

    @field_validator("validation", mode="before")
    @classmethod
    def _check_validation(cls, value: Any) -> Any:
        is_file = isinstance(value, str | list) and bool(value)
        if value is None or is_file or (isinstance(value, float) and 0 < value < 1):
            return value
        raise ValueError(f"a file or a fraction between 0 and 1 is needed, not {shown(value)}")


class PromptStart(BaseModel):
    """How the prompt starts; see the initialisers.

    Attributes:
        num_virtual_tokens: P; None: 16, or with `init: prompt` as many as that prompt has; "auto": see `grow`; 0: no
            prompt at all but a head that is fitted, a linear probe.
        init: "text", "examples" (of the training rows), "labels", "vocabulary", "random" or "prompt".
        init_text: the text of `init: text`; None: the task's own words, see `own_words`.
        spread: `init: text` takes tokens from all over a text that is longer than P.
        init_from: the folder of the prompt that `init: prompt` starts from.
        most_common: `init: vocabulary` draws from that many of the most common tokens.
        distribution: of `init: random`, "table" or "normal".
        seed: of what is drawn at random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_virtual_tokens: int | Literal["auto"] | None = None
    init: Literal["text", "examples", "labels", "vocabulary", "random", "prompt"] = "text"
    init_text: str | None = None
    spread: bool = False
    init_from: _Path | None = None
    most_common: int | None = Field(default=None, ge=1)
    distribution: Literal["table", "normal"] = "table"
    seed: int = Field(default=0, ge=0)

    @field_validator("num_virtual_tokens", mode="before")
    @classmethod
    def _check_count(cls, count: Any) -> Any:
        if count is None or count == "auto" or (isinstance(count, int) and not isinstance(count, bool) and count >= 0):
            return count
        raise ValueError(f'a whole number from 1 on (0: a head alone), or "auto", is needed, not {shown(count)}')

    @model_validator(mode="after")
    def _check_options(self) -> PromptStart:
        for key, init in _BELONGS_TO.items():
            if init != self.init and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} goes with init: {init}, not with init: {self.init}")
        if self.init == "prompt" and self.init_from is None:
            raise ValueError("init: prompt needs init_from, the folder of the prompt to start from")
        if self.init == "prompt" and self.num_virtual_tokens == "auto":
            raise ValueError(
                "num_virtual_tokens: auto is not for init: prompt, whose prompt has its length: leave it out"
            )
        return self


class TaskFile(BaseModel):
    """A task file, checked; its paths are as `load_task_file` found them.

    Attributes:
        name: of what is learned: 1 to 64 of a-z, 0-9, ".", "_" and "-", without a dot at the start.
        base: what `load_base` takes.
        task: what is learned.
        data: from which rows.
        prompt: from where the prompt starts.
        recipe: how it is trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base: str = Field(min_length=1)
    task: Task
    data: Data
    prompt: PromptStart = PromptStart()
    recipe: Recipe = Recipe()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_form(cls, content: Any) -> Any:
        """The template, target and empty columns that go by a name, see `FORMS`."""
        task = content.get("task") if isinstance(content, dict) else None
        form = FORMS.get(str(task.get("template"))) if isinstance(task, dict) else None
        if form is None or not isinstance(task, dict):
            return content
        task = {**task, "template": form.template, "target": task.get("target", form.target)}
        data = content.get("data")
        return {**content, "task": task, "data": {"empty": form.empty} | data if isinstance(data, dict) else data}

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not names.is_name(name):
            raise ValueError(f"a name is {names.RULE}, not {shown(name)}")
        return name

    @field_validator("base")
    @classmethod
    def _find_base(cls, base: str, info: ValidationInfo) -> str:
        """A folder or a GGUF file beside the task file, else the name as it is."""
        beside = _folder(info) / base
        is_model = beside.is_dir() or (beside.suffix.lower() == ".gguf" and beside.is_file())
        # Absolute, since the card keeps the name and a prompt may be used from anywhere.
        return os.path.abspath(beside) if is_model and base != EMBEDDED else base

    def rows(self) -> dict[str, Sequence[Row]]:
        """The rows by the part of the data: "training", and where there are such "validation" and "test".

        Raises:
            SoftPromptError: as `load_rows` and `split_rows`, or the training rows show one label only.
        """
        data, task = self.data, self.task
        # All at once: a mistake in the test rows is not to come out after the training.
        train = load_rows(data.train, task, reading=data)
        check_trainable(train, task)
        rows, checks = with_validation(train, data.validation, task, self.recipe.seed, reading=data)
        check_trainable(rows, task)
        test = None if data.test is None else load_rows(data.test, task, reading=data)
        parts = {"training": rows, "validation": checks, "test": test}
        return {part: found for part, found in parts.items() if found is not None}

    @model_validator(mode="after")
    def _check_start(self) -> TaskFile:
        if self.prompt.num_virtual_tokens == "auto" and self.data.validation is None:
            raise ValueError(
                "prompt.num_virtual_tokens: auto is decided by validation: give data.validation, or a number"
            )
        if self.prompt.num_virtual_tokens == 0 and (self.task.labels is None or self.task.answer == "words"):
            raise ValueError("prompt.num_virtual_tokens: 0 is for a task with labels and task.answer: head")
        if self.prompt.init == "labels" and self.task.labels is None:
            raise ValueError("prompt.init: labels needs a task with labels: choose text, vocabulary or random")
        if self.prompt.init == "text" and self.prompt.init_text is None and not own_words(self.task):
            raise ValueError("prompt.init_text: the template has no words of its own to start from: give a text")
        return self


def load_task_file(path: str | Path, overrides: Sequence[str] = ()) -> TaskFile:
    """Read a task file.

    Relative paths in it, and in `overrides`, start from the file's folder. A relative `base` that is a folder or a
    GGUF file there is that one.

    Args:
        path: the YAML file.
        overrides: keys to set to other values, such as "recipe.max_steps=300"; the values are YAML.

    Raises:
        SoftPromptError: the file can't be read, or a key is unknown, missing or wrong; one line names it.
    """
    path = Path(path)
    content = _read(path)
    for override in overrides:
        _apply(content, override)
    _find_labels(content, path.parent)
    where = " ".join([str(path), *(f"--set {override}" for override in overrides)])
    try:
        return TaskFile.model_validate(content, context={"folder": path.parent})
    except ValidationError as error:
        raise SoftPromptError(validation_line(error, where, TaskFile)) from None


def _find_labels(content: dict[str, Any], folder: Path) -> None:
    """Put the labels that stand in the training rows in the place of `task.labels: auto`."""
    task, data = content.get("task"), content.get("data")
    if not isinstance(task, dict) or task.get("labels") != "auto":
        return
    recipe = content.get("recipe")
    if isinstance(recipe, dict) and recipe.get("private") is not None:
        raise SoftPromptError(
            "task.labels: auto reads the labels off the rows that recipe.private protects: write them"
        )
    try:
        read = Data.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise SoftPromptError(validation_line(error, "data")) from None
    task["labels"] = find_labels(read.train, read, by_word=task.get("answer") == "tags")


def make_prompt(base: Base, start: PromptStart, task: Task, rows: Sequence[Row] = ()) -> SoftPrompt:
    """The prompt that a task file's training starts from.

    Args:
        base: the frozen base.
        start: how it starts.
        task: what is learned.
        rows: the training rows, for `init: examples`.

    Raises:
        SoftPromptError: too many virtual tokens or "auto" of them, a prompt to start from that can't be read, or no
            rows to take examples from.
        WrongBaseError: the prompt to start from was made for another base.
    """
    if start.num_virtual_tokens == "auto":
        raise SoftPromptError("prompt.num_virtual_tokens: auto is for `softprompt train` alone: give a number here")
    if start.init_from is not None:
        return SoftPrompt.from_prompt(SoftPrompt.load(start.init_from, base), start.num_virtual_tokens)
    if start.num_virtual_tokens == 0:
        return SoftPrompt.none(base, len(task.labels or []))
    count = start.num_virtual_tokens or _VIRTUAL_TOKENS
    if start.init == "text":
        text = own_words(task) if start.init_text is None else start.init_text
        return SoftPrompt.from_text(base, text, count, spread=start.spread)
    if start.init == "examples":
        written = [(task.render(row.columns) + (row.target or ""), row.label) for row in rows]
        return SoftPrompt.from_examples(base, examples.choose(base, written, count, start.seed), count)
    if start.init == "labels":
        # As they stand in a target: with the space before it " positive" is the token that the base is to produce.
        labels = [task.render_target({LABEL_COLUMN: label}) for label in task.labels or []]
        return SoftPrompt.from_labels(base, labels, count, seed=start.seed)
    if start.init == "vocabulary":
        return SoftPrompt.from_vocabulary(base, count, seed=start.seed, most_common=start.most_common)
    return SoftPrompt.random(base, count, seed=start.seed, distribution=start.distribution)


def own_words(task: Task) -> str:
    """The text to start from where none is given: "Classify: " and the labels, or of free text the template's words."""
    if task.labels is not None:
        return f"Classify: {', '.join(task.labels)}"
    return " ".join(task.render(dict.fromkeys(task.columns, "")).split())


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 010 and 12:30 are no numbers, labels are text, and a key that stands twice is refused."""

    # Numbers as YAML 1.2 has them, and no dates.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, rule) for tag, rule in known if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
                seen.add(key.value)
                if key.value in _TEXT:
                    _as_text(value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _as_text(node: yaml.Node) -> None:
    """Let what is in a node be text as it is written, but for null."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:null":
            node.tag = "tag:yaml.org,2002:str"
        return
    for inner in node.value if isinstance(node, yaml.CollectionNode) else []:
        for one in inner if isinstance(inner, tuple) else (inner,):
            _as_text(one)


def _parse(text: str, where: str, key: str = "") -> Any:
    """What `text` says in YAML, as the value of `key`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if key in _TEXT:
            _as_text(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        raise SoftPromptError(f"{where}: {line}not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise SoftPromptError(f"{where}: not YAML: {error}") from None
    except RecursionError:
        raise SoftPromptError(f"{where}: nested too deeply") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SoftPromptError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    content = _parse(text, str(path))
    if content is None:
        raise SoftPromptError(f"{path}: the file is empty")
    if not isinstance(content, dict):
        raise SoftPromptError(f"{path}: not a task file: it needs the keys {', '.join(TaskFile.model_fields)}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SoftPromptError(f"--set {override}: write KEY=VALUE, such as recipe.max_steps=300")
    place = content
    for key in keys[:-1]:
        inner = place.get(key)
        if inner is None:
            inner = place[key] = {}
        if not isinstance(inner, Mapping):
            raise SoftPromptError(f"--set {override}: {key} has no keys of its own")
        place = inner  # type: ignore[assignment]
    place[keys[-1]] = _parse(value, f"--set {override}", keys[-1])
