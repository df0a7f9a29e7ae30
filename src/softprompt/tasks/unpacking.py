"""A table's bytes: found, unpacked and decoded, and what is no table named for what it is.

Owns what a file is by its first bytes, whatever its name. A file is read anew whenever it is gone through, so that
memory does not grow with it; what is packed, or comes from a pipe, is kept. Knows nothing of rows.
"""

from __future__ import annotations

import glob
import gzip
import io
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from softprompt.errors import SoftPromptError
from softprompt.text import counted, shown

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".arrow")
STDIN = ("-", "/dev/stdin")
# What a file begins with that is no table, and what to do.
_OTHERS = (
    (rb"\s*<(!doctype html|html|head|body)", "is an HTML page, not a table: download the file itself"),
    (rb"version https://git-lfs\.github\.com/", "is a pointer of Git LFS, not the file: fetch it with git lfs pull"),
    (rb"\xd0\xcf\x11\xe0", "is a workbook of old Excel: save it as .xlsx or as CSV UTF-8"),
    (rb"%PDF-", "is a PDF, not a table: export the table as CSV"),
    (rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "is packed in a way that is not read: unpack it, or use gzip"),
)
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_MOST_FOREIGN = 0.3  # of a Windows-1252 text's letters are not ASCII
_START = 4096  # bytes that say what a file is
_Open = Callable[[], BinaryIO]


@dataclass(frozen=True)
class Content:
    """A table's bytes.

    Attributes:
        name: what messages call it.
        suffix: what kind of table it is, such as ".csv"; "" where its name does not say.
        open: gives the bytes as a file, from the start.
        part: the sheet, or the part of a JSON document, that was asked for with "#"; None: the only one.
    """

    name: str
    suffix: str
    open: _Open
    part: str | None = None

    @property
    def data(self) -> bytes:
        """All of the bytes."""
        return _read(self.open)


@dataclass(frozen=True)
class Text:
    """A file's text, which is decoded whenever it is gone through: none of it is kept.

    Attributes:
        open: gives the bytes as a file, from the start.
        encoding: what they are decoded by.
    """

    open: _Open
    encoding: str

    def lines(self, newline: str = "") -> Iterator[str]:
        """The lines with their ends: "\\n", "\\r\\n" or "\\r", or `newline` alone."""
        mark = "\ufeff"
        with io.TextIOWrapper(self.open(), self.encoding, newline=newline) as file:
            for line in file:
                yield line.removeprefix(mark)
                mark = ""

    def whole(self) -> str:
        """All of it."""
        return "".join(self.lines())


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _read(give: _Open, most: int = -1) -> bytes:
    with give() as file:
        return file.read(most)


def find(source: str | Path, root: Path) -> list[str]:
    """The paths that a source names: `~` is the home folder, and a pattern stands for the files that it matches.

    Raises:
        SoftPromptError: a pattern matches nothing.
    """
    if str(source) in STDIN or str(source).startswith("hub:"):
        return [str(source)]
    path = root / Path(source).expanduser()
    if not glob.has_magic(str(path)) or path.exists():
        return [str(path)]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise SoftPromptError(f"{path}: no file matches this pattern")
    return found


def load(source: str, delimited: bool = False) -> Content:
    """A file's bytes, unpacked; FILE#PART names a member of a zip, a sheet or a part of a JSON document.

    Args:
        source: one of those that `find` has found.
        delimited: it is a delimited file whatever its name.

    Raises:
        SoftPromptError: it cannot be read, is empty, or is no table.
    """
    name, part = source, None
    if "#" in source and not Path(source).exists():
        name, _, part = source.rpartition("#")
    path = Path(name)
    give: _Open
    try:
        if name in STDIN:
            give = partial(io.BytesIO, sys.stdin.buffer.read())
        elif path.is_file():
            give = partial(_open, path)
        else:
            give = partial(io.BytesIO, path.read_bytes())  # a pipe gives them once
        start = _read(give, _START)
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be read: {error.strerror}") from None
    if not start:
        raise SoftPromptError(f"{path}: the file is empty")
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    give, suffix, part = _unpack(name, give, suffix, part)
    start = _read(give, _START)
    if suffix == ".parquet" or start[:4] == b"PAR1":
        suffix = ".parquet"
    for beginning, what in _OTHERS:
        if re.match(beginning, start[:200], re.IGNORECASE):
            raise SoftPromptError(f"{path} {what}")
    delimited = delimited or (suffix in ("", ".txt", ".tab") and b"\t" in start.partition(b"\n")[0])
    if suffix in SUFFIXES or delimited or (name in STDIN and suffix == ""):
        return Content(name, suffix if suffix in SUFFIXES else "", give, part)
    raise SoftPromptError(
        f"{path}: cannot read {suffix or 'a file without a suffix'}; give a {', '.join(SUFFIXES)} file, packed with "
        "gzip or zip or not, a folder of save_to_disk, or hub:OWNER/NAME:SPLIT; or say its data.delimiter"
    )


def _unpack(name: str, give: _Open, suffix: str, part: str | None) -> tuple[_Open, str, str | None]:
    """What is in a gzip file or a zip of one file, whatever the file is called; a workbook stays one."""
    if _read(give, 2) == b"\x1f\x8b":
        if not name.endswith(".gz"):
            logger.info("%s: is packed with gzip, and read so", name)
        try:
            return partial(io.BytesIO, gzip.decompress(_read(give))), suffix, part
        except (OSError, EOFError, zlib.error):
            raise SoftPromptError(f"{name}: is damaged: it cannot be unpacked by gzip; fetch it again") from None
    with give() as file:
        if not zipfile.is_zipfile(file) or suffix == ".parquet":
            if suffix == ".xlsx":
                raise SoftPromptError(f"{name}: is no workbook: save it as .xlsx or as CSV UTF-8")
            return give, suffix, part
    with give() as file, zipfile.ZipFile(file) as packed:
        names = [one for one in packed.namelist() if not one.endswith("/") and not one.startswith("__MACOSX/")]
        if "xl/workbook.xml" in names:
            return give, ".xlsx", part
        if part in names:
            names = [str(part)]
        if len(names) != 1:
            raise SoftPromptError(f"{name}: holds {len(names)} files, {shown(names)}: name one as {name}#FILE")
        if suffix != ".zip":
            logger.info("%s: is a zip of one file, %s, and read so", name, names[0])
        try:
            return partial(io.BytesIO, packed.read(names[0])), Path(names[0]).suffix.lower(), None
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise SoftPromptError(f"{name}: {names[0]} cannot be unpacked: {error}; unpack it by hand") from None


def decode(content: Content, encoding: str | None) -> Text:
    """The text of a file: in `encoding`, or what its first bytes say, or UTF-8, or plain Windows-1252, which is said.

    Raises:
        SoftPromptError: it cannot be decoded, or is blank.
    """
    name, start = content.name, _read(content.open, 4)
    marked = next((code for mark, code in _MARKS if start.startswith(mark)), None)
    if marked not in (None, "utf-8") and encoding is None:
        logger.info("%s: is %s", name, str(marked).upper())
    text = Text(content.open, encoding or marked or "utf-8")
    try:
        _check(name, text)
    except UnicodeDecodeError as error:
        if encoding or marked not in (None, "utf-8"):
            raise SoftPromptError(f"{name}: is not {encoding or marked}: {error.reason}; give data.encoding") from None
        data = content.data
        _check_western(name, data, _first_fault(data))
        text = Text(content.open, "cp1252")
        _check(name, text)
    return text


def _check(name: str, text: Text) -> None:
    """Refuse a text that is blank or holds null bytes."""
    blank = True
    for number, line in enumerate(text.lines("\n"), 1):
        if "\0" in line:
            raise SoftPromptError(
                f"{name}: line {number} holds null bytes; save the file as UTF-8, or give data.encoding"
            )
        blank = blank and not line.strip()
    if blank:
        raise SoftPromptError(f"{name}: the file is empty")


def _first_fault(data: bytes) -> int:
    """Where bytes cease to be UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _check_western(name: str, data: bytes, start: int) -> None:
    """Refuse what is neither UTF-8 nor plainly Windows-1252: no line UTF-8 beyond ASCII, the letters mostly ASCII."""
    line = data.count(b"\n", 0, start) + 1
    refused = SoftPromptError(
        f"{name}: line {line} is not UTF-8 (byte 0x{data[start]:02x} at offset {start}); save the file as UTF-8, "
        "or give data.encoding"
    )
    foreign = [one for one in data.split(b"\n") if not one.isascii()]
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        raise refused from None
    letters = [letter for letter in b"\n".join(foreign).decode("cp1252") if letter.isalpha()]
    has_utf8 = any(_first_fault(one) == len(one) for one in foreign)
    if has_utf8 or sum(not one.isascii() for one in letters) > _MOST_FOREIGN * len(letters):
        raise refused
    logger.warning(
        "%s: is not UTF-8; read as Windows-1252, which %s (the first is line %s); give data.encoding if it is another",
        name,
        counted(len(foreign), "line needs", "lines need"),
        line,
    )
