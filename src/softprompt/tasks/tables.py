"""Tables of every format as records: what stands in each column, untouched, and where.

Owns the formats but delimited text. CSV and JSON are read by the standard library and not by `datasets`, which guesses
types ("007" becomes 7, "NA" nothing), has no line numbers for its errors and keeps a copy of each file in a cache;
Parquet, Arrow and hub data sets carry their types and go through `datasets`. Knows nothing of tasks.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from softprompt.bases.hub import UNREACHED, hub_or_cache
from softprompt.errors import SoftPromptError
from softprompt.tasks.delimited import Record, read_delimited
from softprompt.tasks.reading import Reading
from softprompt.tasks.unpacking import Content, Text, decode, find, load
from softprompt.text import shown

if TYPE_CHECKING:
    from datasets import Dataset

_HUB = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<subset>[\w.-]+))?:(?P<split>\S+)")
# Libraries whose tables are taken from memory, by a method that gives their rows.
_IN_MEMORY = ("to_dicts", "to_pylist", "to_dict")
_AT_ONCE = 1024  # rows of a Parquet file that are in memory


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: what messages call it.
        columns: their names; None where each record has its own.
        records: in order; to be gone through once.
    """

    name: str
    columns: list[str] | None
    records: Iterable[Record]


def open_tables(
    source: object, reading: Reading, needed: Sequence[str] = (), root: str | Path | None = None
) -> list[Table]:
    """The tables that a source is.

    Args:
        source: a file, a pattern of files, a folder of `save_to_disk`, `hub:OWNER/NAME[/SUBSET]:SPLIT`, "-" for
            stdin, a list of these; or a `datasets.Dataset`, a data frame, a list of mappings.
        reading: what is not to be found out.
        needed: the columns that must not stand there twice.
        root: folder that a relative path starts from; default the working folder.

    Raises:
        SoftPromptError: a table cannot be read.
    """
    if isinstance(source, str | Path):
        names = find(source, Path(root or ""))
        return [_open(name, reading, needed) for name in names]
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return [_of_dataset(source, "input")]
    for method in _IN_MEMORY:
        if hasattr(source, method) and hasattr(source, "columns"):
            give: Callable[..., Any] = getattr(source, method)
            found = give("records") if method == "to_dict" else give()
            return [_of_mappings(found, "input")]
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        if all(isinstance(one, Mapping) for one in source):
            return [_of_mappings(source, "input")]
        if all(isinstance(one, str | Path) for one in source):
            return [table for one in source for table in open_tables(one, reading, needed, root)]
    raise SoftPromptError(
        f"{shown(source)} is no table: give a file, a list of files, hub:OWNER/NAME:SPLIT, a list of mappings, a data "
        "frame or a datasets.Dataset"
    )


def _open(source: str, reading: Reading, needed: Sequence[str]) -> Table:
    if source.startswith("hub:"):
        return _open_hub(source)
    if Path(source).is_dir():
        return _open_folder(Path(source))
    content = load(source, delimited=reading.delimiter is not None or isinstance(reading.header, list))
    if content.suffix == ".xlsx":
        return _open_sheet(content, needed)
    if content.suffix in (".parquet", ".arrow"):
        return _open_arrow(content)
    name = content.name
    text = decode(content, reading.encoding)
    if content.suffix in (".jsonl", ".ndjson"):
        return Table(name, None, _json_lines(name, text))
    first = next(line for line in text.lines() if line.strip()).lstrip()[0]
    if content.suffix == ".json" or (content.suffix == "" and reading.delimiter is None and first in "[{"):
        return _open_json(name, text, content.part, reading)
    columns, records = read_delimited(name, text, content.suffix, reading, needed)
    return Table(name, columns, records)


def _of_mappings(rows: Iterable[Mapping[str, object]], name: str) -> Table:
    return Table(name, None, (Record(f"{name}: row {number}", dict(row)) for number, row in enumerate(rows, 1)))


def _parse(text: str, place: str) -> Any:
    """JSON with numbers as they are written; NaN is how some writers spell a missing value."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        refuse_duplicates([name for name, _ in pairs], place)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except RecursionError:
        raise SoftPromptError(f"{place}: nested too deeply") from None


def _json_lines(name: str, text: Text) -> Iterator[Record]:
    number = 0
    for line, content in enumerate(text.lines("\n"), 1):
        if not content.strip():
            continue
        number += 1
        place = f"{name}: row {number} (line {line})"
        try:
            record = _parse(content.removesuffix("\n"), place)
        except json.JSONDecodeError as error:
            yield Record(place, fault=f"not JSON: {error.msg} at column {error.colno}")
        except SoftPromptError as error:
            yield Record(place, fault=str(error).removeprefix(f"{place}: "))
        else:
            yield _of_json(record, place)


def _of_json(record: Any, place: str) -> Record:
    if isinstance(record, dict):
        return Record(place, record)
    return Record(place, fault=f'not an object such as {{"text": "..."}} but {shown(record)}')


def _open_json(name: str, text: Text, part: str | None, reading: Reading) -> Table:
    """A JSON array of rows, an object that holds such arrays, or lines of objects."""
    try:
        found = _parse(text.whole(), name)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return Table(name, None, _json_lines(name, text))
        raise SoftPromptError(f"{name}: line {error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
    if isinstance(found, dict):
        parts = {key: value for key, value in found.items() if isinstance(value, list)}
        if part is None and len(parts) == 1 and len(found) == 1:
            (part,) = parts
        if parts and part not in parts and all(isinstance(value, list) for value in found.values()):
            raise SoftPromptError(
                f"{name}: holds the parts {shown(list(parts))}: name one as {name}#{next(iter(parts))}"
            )
        found = parts.get(part or "", [found])
    if not isinstance(found, list):
        raise SoftPromptError(f"{name}: not an array of rows but {shown(found)}")
    places = (f"{name}: row {number}" for number in range(1, len(found) + 1))
    if not found or not all(isinstance(row, list) for row in found):
        return Table(name, None, (_of_json(row, place) for row, place in zip(found, places, strict=True)))
    given = reading.header
    columns = given if isinstance(given, list) else [f"column_{i + 1}" for i in range(len(found[0]))]
    return Table(
        name,
        columns,
        (
            Record(place, dict(zip(columns, row, strict=False)))
            if len(row) == len(columns)
            else Record(place, fault=f"{len(row)} values, but {len(columns)} columns; mend the row")
            for row, place in zip(found, places, strict=True)
        ),
    )


def _open_sheet(content: Content, needed: Sequence[str]) -> Table:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise SoftPromptError(
            f'{content.name}: a workbook needs pip install "softprompt[tables]"; or save the sheet as CSV UTF-8'
        ) from None
    book = load_workbook(io.BytesIO(content.data), read_only=True, data_only=True)
    if content.part not in (None, *book.sheetnames):
        raise SoftPromptError(f"{content.name}: no sheet {shown(content.part)}: name one of {shown(book.sheetnames)}")
    if content.part is None and len(book.sheetnames) > 1:
        raise SoftPromptError(
            f"{content.name}: holds the sheets {shown(book.sheetnames)}: name one as "
            f"{content.name}#{book.sheetnames[0]}"
        )
    lines = book[content.part or book.sheetnames[0]].iter_rows(values_only=True)
    header = [str(value).strip() if value is not None else f"column_{i}" for i, value in enumerate(next(lines, ()), 1)]
    refuse_duplicates([one for one in header if one in needed], content.name)
    # What Excel keeps below a table: lines without a value.
    filled = ((number, line) for number, line in enumerate(lines, 2) if any(value is not None for value in line))
    return Table(
        content.name,
        header,
        (
            Record(f"{content.name}: row {number} of the sheet", dict(zip(header, line, strict=False)))
            for number, line in filled
        ),
    )


def _open_arrow(content: Content) -> Table:
    """A Parquet or Arrow file, of which some rows at a time are in memory."""
    kind = "Parquet" if content.suffix == ".parquet" else "Arrow"
    with _told_as(kind, content.name), content.open() as file:
        schema = _batches(content, file)[0]
    refuse_duplicates(schema.names, content.name)

    def records() -> Iterator[Record]:
        import pyarrow  # type: ignore[import-untyped]
        from datasets import Dataset

        first = 1
        with content.open() as file:
            with _told_as(kind, content.name):
                batches = _batches(content, file)[1]
            while True:
                with _told_as(kind, content.name):
                    batch = next(batches, None)
                    if batch is None:
                        return
                    batch.validate(full=True)  # that text is UTF-8, above all
                    some = Dataset(pyarrow.Table.from_batches([batch], schema), fingerprint=f"{content.name} {first}")
                yield from _of_dataset(some, content.name, first).records
                first += len(some)

    return Table(content.name, list(schema.names), records())


def _batches(content: Content, file: BinaryIO) -> tuple[Any, Iterator[Any]]:
    """The schema of a Parquet or Arrow file, and its rows in batches."""
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    if content.suffix == ".parquet":
        parquet = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        return parquet.schema_arrow, parquet.iter_batches(batch_size=_AT_ONCE)
    if file.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
    file.seek(0)
    stream = pyarrow.ipc.open_stream(file)
    return stream.schema, iter(stream)


@contextmanager
def _told_as(kind: str, name: str) -> Iterator[None]:
    """Within it what a library says of a file becomes one line."""
    import pyarrow

    try:
        yield
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SoftPromptError(f"{name}: cannot be read as {kind}: {error}") from None


def _open_folder(path: Path) -> Table:
    from datasets import load_from_disk

    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise SoftPromptError(
            f"{path}: holds the splits {shown(splits)}: name one as {path / (splits or ['train'])[0]}"
        )
    if not (path / "dataset_info.json").exists():
        raise SoftPromptError(f"{path}: cannot be read: Is a directory; give a file, or a pattern such as {path}/*.csv")
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # whatever goes wrong, in any of the library's types
        raise SoftPromptError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from None
    return _of_dataset(dataset, str(path))


def _open_hub(source: str) -> Table:
    match = _HUB.fullmatch(source)
    if match is None:
        raise SoftPromptError(f"{source}: write a hub data set as hub:OWNER/NAME:SPLIT, or hub:OWNER/NAME/SUBSET:SPLIT")
    import datasets

    subset = (match["subset"],) if match["subset"] else ()
    try:
        with hub_or_cache() as answers:
            dataset = datasets.load_dataset(match["name"], *subset, split=match["split"])
    except Exception as error:  # whatever goes wrong between here and the hub, in any of its libraries' types
        if not answers:
            raise SoftPromptError(f"{source}: {UNREACHED}") from None
        raise SoftPromptError(f"{source}: cannot be loaded: {type(error).__name__}: {error}") from None
    return _of_dataset(dataset, source)


def _of_dataset(dataset: Dataset, name: str, first: int = 1) -> Table:
    """The rows of a data set, of which the first has the number `first`."""
    from datasets import ClassLabel

    names = {column: feature.names for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)}

    def records() -> Iterator[Record]:
        every = (
            dict(zip(some, row, strict=True))
            for some in dataset.iter(_AT_ONCE)
            for row in zip(*some.values(), strict=True)
        )
        for number, record in enumerate(every, first):
            for column, labels in names.items():
                # Where a label is unknown, as in many test sets, its index is -1.
                if record[column] is not None:
                    record[column] = labels[record[column]] if record[column] >= 0 else None
            yield Record(f"{name}: row {number}", record)

    return Table(name, list(dataset.column_names), records())


def refuse_duplicates(names: Sequence[str], place: str) -> None:
    """Refuse columns of one name.

    Raises:
        SoftPromptError: there are such.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SoftPromptError(f"{place}: the column {shown(repeated[0])} is there more than once; rename one")
