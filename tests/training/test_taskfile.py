from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import Recipe, SoftPrompt, SoftPromptError, Task, WrongBaseError
from softprompt.bases.base import Base
from softprompt.tasks import load_rows
from softprompt.training.taskfile import PromptStart, TaskFile, load_task_file, make_prompt, own_words
from tests.conftest import make_base

EXAMPLES = Path(__file__).parents[2] / "examples"

WHOLE = """\
name: movie-sentiment
base: smollm2-135m
task:
  template: "Review: {text}\\nSentiment:"
  target: " {label}"
  labels: [negative, positive]
  metric: macro_f1
data: {train: train.csv, validation: dev.csv, test: "hub:owner/name:test"}
prompt: {num_virtual_tokens: 8, init: text, init_text: "Classify this:", seed: 3}
recipe: {max_steps: 30, batch_size: 4, learning_rate: auto, evaluate_every: 5, patience: 2, dtype: auto}
"""
FREE_TEXT = """\
name: echo
base: smollm2-135m
task: {template: "{text}", target: " {answer}"}
data: {train: train.csv}
prompt: {init: random}
"""
CLASSES = Task(template="Review: {text}\nSentiment:", target=" {label}!", labels=["bad", "good"])


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "task.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(SoftPromptError) as caught:
        load_task_file(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def start(**keys: object) -> PromptStart:
    return PromptStart.model_validate(keys)


def test_a_whole_file_is_read(write, tmp_path):
    file = load_task_file(write(WHOLE))
    assert file.name == "movie-sentiment"
    assert file.base == "smollm2-135m"
    assert file.task.labels == ["negative", "positive"]
    assert file.task.template == "Review: {text}\nSentiment:"
    assert file.task.metric == "macro_f1"
    assert file.data.train == str(tmp_path / "train.csv")
    assert file.data.validation == str(tmp_path / "dev.csv")
    assert file.data.test == "hub:owner/name:test"
    assert file.prompt.num_virtual_tokens == 8
    assert file.prompt.init_text == "Classify this:"
    assert file.recipe.max_steps == 30
    assert file.recipe.batch_size == 4


def test_what_is_left_out_has_defaults(write):
    file = load_task_file(write(FREE_TEXT))
    assert file.data.validation == "auto"
    assert file.data.test is None
    assert file.task.metric == "exact_match"
    assert file.recipe.max_steps == Recipe().max_steps


def test_a_byte_order_mark_is_no_part_of_the_file(write):
    assert load_task_file(write(b"\xef\xbb\xbf" + WHOLE.encode())).name == "movie-sentiment"


def test_a_validation_fraction(write):
    assert load_task_file(write(WHOLE), ["data.validation=0.2"]).data.validation == 0.2


@pytest.mark.parametrize("value", ["0.0", "1.0", "1", "-0.5", "true", "[]", "''", ".nan"])
def test_what_is_no_validation_is_refused(write, value):
    assert "data.validation: a file or a fraction between 0 and 1" in refused(write(WHOLE), f"data.validation={value}")


@pytest.mark.parametrize("name", ["Movie", "a b", ".hidden", "", "x" * 65, "a/b", "é"])
def test_a_bad_name_is_refused(write, name):
    assert "name: a name is 1 to 64 of a-z" in refused(write(WHOLE), f"name='{name}'")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nmae=x", "nmae: unknown key"),
        ("task.labls=[a]", "task.labls: unknown key"),
        ("data.dev=x", "data.dev: unknown key"),
        ("prompt.tokens=4", "prompt.tokens: unknown key"),
        ("recipe.max_stepz=4", "recipe.max_stepz: unknown key"),
        ("recipe.learning_rate=0", "recipe.learning_rate: a number above 0"),
        ("recipe.learning_rate=-0.1", "recipe.learning_rate: a number above 0"),
        ("recipe.max_steps=0", "recipe.max_steps: "),
        ("prompt.num_virtual_tokens=-1", "prompt.num_virtual_tokens: "),
        ("prompt.num_virtual_tokens=-3", "prompt.num_virtual_tokens: "),
        ("prompt.init=words", "prompt.init: "),
        ("task.labels=[one]", "task.labels: at least 2 are needed"),
        ("task.template=no columns", "task.template: name at least one column"),
        ("task.metric=bleu", "task.metric: bleu does not measure classification"),
        ("base=''", "base: "),
        ("data.train=null", "data.train: "),
        ("task=null", "task: "),
        ("name.first=x", "name has no keys of its own"),
        ("recipe.max_steps", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("recipe..x=3", "write KEY=VALUE"),
        ("recipe.max_steps=[", "not YAML"),
    ],
)
def test_a_bad_override_is_named(write, override, says):
    message = refused(write(WHOLE), override)
    assert says in message
    assert f"--set {override}" in message


def test_overrides_reach_keys_that_are_not_in_the_file(write):
    file = load_task_file(write(FREE_TEXT), ["recipe.max_steps=7", "recipe.learning_rate=1e-3", "data.test=t.csv"])
    assert file.recipe.max_steps == 7
    assert file.recipe.rate == 0.001
    assert file.data.test is not None


def test_an_error_in_the_file_names_file_and_key(write):
    path = write(WHOLE.replace("patience", "patients"))
    assert refused(path) == f"{path}: recipe.patients: unknown key: did you mean recipe.patience?"
    path = write(WHOLE.replace("base: smollm2-135m\n", ""))
    assert refused(path) == f"{path}: base: is missing"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n- b\n", "not a task file"),
        ("just words", "not a task file"),
        ("name: a\nbase: [\ntask: 3", "line 3: not YAML"),
        ("name: a\n\tbase: b", "line 2: not YAML"),
        ("name: a\nbase: b\nname: c\n", "line 3: not YAML: name is there twice"),
        ("name: !!python/object:os.system x", "line 1: not YAML"),
        ("[" * 5000, "nested too deeply"),
        (b"name: \xff", "not UTF-8 (byte 6)"),
    ],
)
def test_what_is_no_task_file_is_refused(write, content, says):
    path = write(content)
    assert refused(path).startswith(f"{path}: ")
    assert says in refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refused(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: no such file"
    assert "cannot be read" in refused(tmp_path)


def test_a_base_beside_the_file_is_that_one(write, tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "small.gguf").touch()
    path = write(WHOLE)
    monkeypatch.chdir(tmp_path)
    for name in ("models/tiny", "small.gguf"):
        for where in (path, Path("task.yaml")):
            assert load_task_file(where, [f"base={name}"]).base == str(tmp_path / name)
    assert load_task_file(path, ["base=owner/name"]).base == "owner/name"
    assert load_task_file(path, ["base=missing.gguf"]).base == "missing.gguf"
    (tmp_path / "smollm2-135m").mkdir()
    assert load_task_file(path).base == "smollm2-135m"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"init": "labels", "init_text": "x"}, "init_text goes with init: text, not with init: labels"),
        ({"init": "random", "spread": True}, "spread goes with init: text"),
        ({"init_from": "there"}, "init_from goes with init: prompt"),
        ({"most_common": 5}, "most_common goes with init: vocabulary"),
        ({"distribution": "normal"}, "distribution goes with init: random"),
        ({"init": "prompt"}, "init: prompt needs init_from"),
    ],
)
def test_options_that_do_not_go_together_are_refused(keys, says):
    with pytest.raises(ValueError, match=says):
        start(**keys)


def test_labels_need_a_classification(write):
    assert "prompt.init: labels needs a task with labels" in refused(write(FREE_TEXT), "prompt.init=labels")


def test_a_text_is_needed_where_the_template_has_no_words(write):
    path = write(FREE_TEXT)
    assert "prompt.init_text: the template has no words" in refused(path, "prompt.init=text")
    assert load_task_file(path, ["prompt.init=text", "prompt.init_text=Say it again"]).prompt.init == "text"


def test_own_words():
    assert own_words(CLASSES) == "Classify: bad, good"
    assert own_words(Task(template="Text: {a}\n{{x}} {b}:", target="{c}")) == "Text: {x} :"


def test_the_prompt_starts_as_the_file_says(tiny_base: Base, tmp_path):
    def same(keys: dict[str, object], prompt: SoftPrompt) -> None:
        made = make_prompt(tiny_base, start(**keys), CLASSES)
        assert torch.equal(made.embeddings, prompt.embeddings)
        assert made.card.initialisation == prompt.card.initialisation

    same({"init_text": "Hello"}, SoftPrompt.from_text(tiny_base, "Hello", 16))
    same({}, SoftPrompt.from_text(tiny_base, "Classify: bad, good", 16))
    long = "one two three four five"
    same(
        {"num_virtual_tokens": 3, "init_text": long, "spread": True},
        SoftPrompt.from_text(tiny_base, long, 3, spread=True),
    )
    same({"init": "labels", "seed": 2}, SoftPrompt.from_labels(tiny_base, [" bad!", " good!"], 16, seed=2))
    same(
        {"init": "vocabulary", "seed": 2, "most_common": 40},
        SoftPrompt.from_vocabulary(tiny_base, 16, seed=2, most_common=40),
    )
    same(
        {"init": "random", "seed": 2, "distribution": "normal"},
        SoftPrompt.random(tiny_base, 16, seed=2, distribution="normal"),
    )
    other = SoftPrompt.random(tiny_base, 5)
    folder = str(other.save(tmp_path / "other"))
    same({"init": "prompt", "init_from": folder}, SoftPrompt.from_prompt(other))
    same({"init": "prompt", "init_from": folder, "num_virtual_tokens": 7}, SoftPrompt.from_prompt(other, 7))


def test_a_prompt_to_start_from_stands_beside_the_file(write, tmp_path):
    file = load_task_file(write(WHOLE), ["prompt={init: prompt, init_from: ../other}"])
    assert file.prompt.init_from == str(tmp_path / ".." / "other")


def test_a_prompt_of_another_base_is_no_start(tiny_base: Base, tmp_path):
    folder = SoftPrompt.random(make_base(seed=1), 5).save(tmp_path / "other")
    with pytest.raises(WrongBaseError):
        make_prompt(tiny_base, start(init="prompt", init_from=str(folder)), CLASSES)


def test_a_prompt_longer_than_the_context_is_refused(tiny_base: Base):
    for count in (256, 10_000):
        with pytest.raises(SoftPromptError, match=f"{count} virtual tokens leave no room"):
            make_prompt(tiny_base, start(num_virtual_tokens=count), CLASSES)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_task_files(path: Path):
    file = load_task_file(path)
    assert isinstance(file, TaskFile)
    assert file.name == path.stem


def test_the_example_of_free_text_has_its_data():
    file = load_task_file(EXAMPLES / "iso-dates.yaml")
    assert file.data.test is not None
    train, test = load_rows(file.data.train, file.task), load_rows(file.data.test, file.task)
    assert len(train) == 300
    assert len(test) == 60
    assert not {row.target for row in train} & {row.target for row in test}


@pytest.mark.parametrize(
    "written", ["010", "0x10", "12:30", "1_000", "1.0", "1e3", "yes", "True", "2024-01-01", ".inf", "0b1", "0o7", "+1"]
)
def test_a_label_is_the_text_that_is_written(write, written):
    labels = f"[{written}, other]"
    in_file = WHOLE.replace("[negative, positive]", labels)
    assert load_task_file(write(in_file)).task.labels == [written, "other"]
    assert load_task_file(write(WHOLE), [f"task.labels={labels}"]).task.labels == [written, "other"]
    assert load_task_file(write(WHOLE), [f"task={{template: '{{text}}', labels: {labels}}}"]).task.labels[0] == written


@pytest.mark.parametrize("labels", ["[null, a]", "[~, a]"])
def test_null_is_no_label(write, labels):
    assert "task.labels" in refused(write(WHOLE), f"task.labels={labels}")


def test_numbers_elsewhere_are_numbers(write):
    file = load_task_file(write(WHOLE), ["recipe.learning_rate=3e-2", "recipe.warmup_steps=007", "recipe.seed=12"])
    assert (file.recipe.learning_rate, file.recipe.warmup_steps, file.recipe.seed) == (0.03, 7, 12)
    assert "recipe.max_steps" in refused(write(WHOLE), "recipe.max_steps=12:30")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("max_steps=3", "recipe.max_steps"),
        ("recipe.lr=0.1", "recipe.learning_rate"),
        ("lr=0.1", "recipe.learning_rate"),
        ("recipe.num_epochs=3", "recipe.epochs"),
        ("data.dev=x.csv", "data.validation"),
        ("task.lables=[a, b]", "task.labels"),
        ("recipe.max_step=3", "recipe.max_steps"),
        ("num_virtual_tokens=3", "prompt.num_virtual_tokens"),
        ("model=x", "base"),
    ],
)
def test_an_unknown_key_is_asked_about(write, override, meant):
    assert refused(write(WHOLE), override).endswith(f"unknown key: did you mean {meant}?")


def test_a_key_like_no_other_is_just_unknown(write):
    assert refused(write(WHOLE), "colour=red").endswith("colour: unknown key")


class TestAutomaticLabels:
    TEXT = WHOLE.replace("[negative, positive]", "auto")

    def write(self, folder, labels):
        lines = "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
        (folder / "train.csv").write_text("text,label\n" + lines)
        (folder / "task.yaml").write_text(self.TEXT)
        return folder / "task.yaml"

    def test_they_are_those_of_the_training_rows(self, tmp_path, caplog):
        caplog.set_level("INFO", "softprompt")
        path = self.write(tmp_path, ["b", "a", "010", "b"])
        assert load_task_file(path).task.labels == ["010", "a", "b"]
        assert "labels: auto: 3 labels in 4 rows" in caplog.text

    def test_their_column_and_their_mapping_count(self, tmp_path):
        path = self.write(tmp_path, ["b", "a", "B"])
        assert load_task_file(path, ["data.labels={B: b}"]).task.labels == ["a", "b"]
        (tmp_path / "train.csv").write_text("text,mood\nx,a\ny,b\n")
        assert load_task_file(path, ["data.columns={label: mood}"]).task.labels == ["a", "b"]
        assert "no column 'label'" in refused(path)

    @pytest.mark.parametrize("labels", [["a"] * 5, [str(i) for i in range(201)]])
    def test_too_few_or_too_many_ask(self, tmp_path, labels):
        assert "write them down in task.labels" in refused(self.write(tmp_path, labels))


def test_forms_by_their_names(write):
    file = load_task_file(write(FREE_TEXT.replace('template: "{text}", target: " {answer}"', "template: alpaca")))
    assert file.task.columns == ["instruction", "input"]
    assert file.task.target == "{output}"
    assert file.data.empty == {"input": ""}
    own = FREE_TEXT.replace('template: "{text}"', "template: messages")
    assert load_task_file(write(own)).task.target == " {answer}"


def test_how_tables_are_read_is_checked(write):
    path = write(WHOLE)
    file = load_task_file(
        path, ["data.delimiter=tab", "data.columns={text: '#1 String'}", "data.labels={1.0: positive}"]
    )
    assert (file.data.delimiter, file.data.columns, file.data.labels) == (
        "\t",
        {"text": "#1 String"},
        {"1.0": "positive"},
    )
    assert load_task_file(path, ["data.header=[text, label]"]).data.header == ["text", "label"]
    assert load_task_file(path, ["data.header=false"]).data.header is False
    several = load_task_file(path, ["data.train=[a.csv, ~/b.csv, 'c-*.csv']"]).data.train
    assert several == [str(path.parent / "a.csv"), str(Path("~/b.csv").expanduser()), str(path.parent / "c-*.csv")]
    assert "data.encoding" in refused(path, "data.encoding=utf-9")
    assert "data.unusable" in refused(path, "data.unusable=drop")
