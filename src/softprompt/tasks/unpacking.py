"""A table's bytes: found, unpacked and decoded, and what is no table named for what it is.

Owns what a file is by its first bytes, whatever its name. Knows nothing of rows.
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
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import SoftPromptError
from softprompt.text import shown

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


@dataclass(frozen=True)
class Content:
    """A table's bytes.

    Attributes:
        name: what messages call it.
        suffix: what kind of table it is, such as ".csv"; "" where its name does not say.
        data: the bytes.
        part: the sheet, or the part of a JSON document, that was asked for with "#"; None: the only one.
    """

    name: str
    suffix: str
    data: bytes
    part: str | None = None


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
    try:
        data = sys.stdin.buffer.read() if name in STDIN else path.read_bytes()
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot be read: {error.strerror}") from None
    if not data:
        raise SoftPromptError(f"{path}: the file is empty")
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    data, suffix, part = _unpack(name, data, suffix, part)
    if suffix == ".parquet" or data[:4] == b"PAR1":
        suffix = ".parquet"
    for start, what in _OTHERS:
        if re.match(start, data[:200], re.IGNORECASE):
            raise SoftPromptError(f"{path} {what}")
    delimited = delimited or (suffix in ("", ".txt", ".tab") and b"\t" in data.partition(b"\n")[0])
    if suffix in SUFFIXES or delimited or (name in STDIN and suffix == ""):
        return Content(name, suffix if suffix in SUFFIXES else "", data, part)
    raise SoftPromptError(
        f"{path}: cannot read {suffix or 'a file without a suffix'}; give a {', '.join(SUFFIXES)} file, packed with "
        "gzip or zip or not, a folder of save_to_disk, or hub:OWNER/NAME:SPLIT; or say its data.delimiter"
    )


def _unpack(name: str, data: bytes, suffix: str, part: str | None) -> tuple[bytes, str, str | None]:
    """What is in a gzip file or a zip of one file, whatever the file is called; a workbook stays one."""
    if data[:2] == b"\x1f\x8b":
        if not name.endswith(".gz"):
            logger.info("%s: is packed with gzip, and read so", name)
        try:
            return gzip.decompress(data), suffix, part
        except (OSError, EOFError, zlib.error):
            raise SoftPromptError(f"{name}: is damaged: it cannot be unpacked by gzip; fetch it again") from None
    if not zipfile.is_zipfile(io.BytesIO(data)) or suffix == ".parquet":
        if suffix == ".xlsx":
            raise SoftPromptError(f"{name}: is no workbook: save it as .xlsx or as CSV UTF-8")
        return data, suffix, part
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        names = [one for one in packed.namelist() if not one.endswith("/") and not one.startswith("__MACOSX/")]
        if "xl/workbook.xml" in names:
            return data, ".xlsx", part
        if part in names:
            names = [str(part)]
        if len(names) != 1:
            raise SoftPromptError(f"{name}: holds {len(names)} files, {shown(names)}: name one as {name}#FILE")
        if suffix != ".zip":
            logger.info("%s: is a zip of one file, %s, and read so", name, names[0])
        try:
            return packed.read(names[0]), Path(names[0]).suffix.lower(), None
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise SoftPromptError(f"{name}: {names[0]} cannot be unpacked: {error}; unpack it by hand") from None


def decode(name: str, data: bytes, encoding: str | None) -> str:
    """The text of a file: in `encoding`, or what its first bytes say, or UTF-8, or plain Windows-1252, which is said.

    Raises:
        SoftPromptError: it cannot be decoded, or is blank.
    """
    marked = next((code for mark, code in _MARKS if data.startswith(mark)), None)
    if marked not in (None, "utf-8") and encoding is None:
        logger.info("%s: is %s", name, str(marked).upper())
    try:
        text = data.decode(encoding or marked or "utf-8")
    except UnicodeDecodeError as error:
        if encoding or marked not in (None, "utf-8"):
            raise SoftPromptError(f"{name}: is not {encoding or marked}: {error.reason}; give data.encoding") from None
        text = _western(name, data, error.start)
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SoftPromptError(f"{name}: line {line} holds null bytes; save the file as UTF-8, or give data.encoding")
    if not text.strip():
        raise SoftPromptError(f"{name}: the file is empty")
    return text


def _western(name: str, data: bytes, start: int) -> str:
    """A text that is plainly Windows-1252: no line is UTF-8 beyond ASCII, and its letters are mostly ASCII."""
    line = data.count(b"\n", 0, start) + 1
    refused = SoftPromptError(
        f"{name}: line {line} is not UTF-8 (byte 0x{data[start]:02x} at offset {start}); save the file as UTF-8, "
        "or give data.encoding"
    )
    foreign = [one for one in data.split(b"\n") if not one.isascii()]
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise refused from None
    letters = [letter for letter in b"\n".join(foreign).decode("cp1252") if letter.isalpha()]
    if any(map(_is_utf8, foreign)) or sum(not one.isascii() for one in letters) > _MOST_FOREIGN * len(letters):
        raise refused
    logger.warning(
        "%s: is not UTF-8; read as Windows-1252, which %s lines need (the first is line %s); give data.encoding if it "
        "is another",
        name,
        f"{len(foreign):,}",
        line,
    )
    return text


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
