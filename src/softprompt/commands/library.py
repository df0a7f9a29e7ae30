"""`softprompt library` and its commands, a method of `PromptLibrary` each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from softprompt.commands.opening import find_prompt, open_for_library
from softprompt.commands.options import (
    LIBRARY,
    Json,
    LibraryFolder,
    PromptFolder,
    PromptName,
    Reference,
    Repository,
    TaskFile,
)
from softprompt.commands.terminal import print_result, reporting
from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.text import shorten

if TYPE_CHECKING:
    from softprompt.prompts.library import Entry

_LONGEST_VALUE = 300  # characters of what a card says, on its page

library_app = typer.Typer(
    help="Named prompts in versions that never change: keep, list, check, go back, share.", no_args_is_help=True
)


@library_app.command("list")
def list_prompts(folder: LibraryFolder = LIBRARY, as_json: Json = False) -> None:
    """List the current version of each prompt."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        library = PromptLibrary(folder)
        entries, damaged = [], []
        for name in library.names():
            try:
                entries.append(library.entry(name))
            except UnknownPromptError:  # removed a moment ago
                continue
            except SoftPromptError:
                damaged.append(name)
        lines = [f"{name} is damaged: see softprompt library verify" for name in damaged]
        if not entries and not damaged:
            lines = [f"No prompts in {folder}. Next: softprompt library add NAME PROMPT"]
        document = {"prompts": [_entry(entry) for entry in entries], "damaged": damaged}
        print_result(out, document if as_json else None, *([_entries(entries)] if entries else []), *lines)


@library_app.command("add")
def add_prompt(
    name: PromptName,
    prompt: PromptFolder,
    folder: LibraryFolder = LIBRARY,
    task: TaskFile = None,
    as_json: Json = False,
) -> None:
    """Keep a prompt as a new version of NAME, which becomes the current one; an ensemble's as NAME.0, NAME.1 ...."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        library = PromptLibrary(folder)
        kept = open_for_library(find_prompt(prompt), name, task)
        entries = [library.add(one, what) for one, what in kept.items()]
        documents = [_entry(entry) for entry in entries]
        print_result(
            out,
            (documents[0] if len(documents) == 1 else {"members": documents}) if as_json else None,
            *(f"Added {entry.name}@{entry.version}, {entry.bytes:,} bytes" for entry in entries),
        )


@library_app.command("show")
def show_prompt(name: Reference, folder: LibraryFolder = LIBRARY, as_json: Json = False) -> None:
    """Show what is known of a prompt, and its versions."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        library = PromptLibrary(folder)
        entry = library.entry(name)
        versions = library.versions(entry.name)
        document = _entry(entry) | {
            "versions": [_entry(version) for version in versions],
            "card": entry.card.model_dump(mode="json"),
        }
        print_result(out, document if as_json else None, _entries(versions), _page(entry))


@library_app.command("remove")
def remove_prompt(name: Reference, folder: LibraryFolder = LIBRARY, as_json: Json = False) -> None:
    """Delete a prompt with all its versions, or one version."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        PromptLibrary(folder).remove(name)
        print_result(out, {"removed": name} if as_json else None, f"Removed {name}")


@library_app.command("rollback")
def rollback_prompt(
    name: PromptName,
    version: Annotated[
        int | None,
        typer.Argument(metavar="[VERSION]", min=1, help="Default: the one before the current one.", show_default=False),
    ] = None,
    folder: LibraryFolder = LIBRARY,
    as_json: Json = False,
) -> None:
    """Make an earlier version of a prompt, or any other, the current one."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        entry = PromptLibrary(folder).rollback(name, version)
        print_result(out, _entry(entry) if as_json else None, f"{entry.name} is {entry.name}@{entry.version} now")


@library_app.command("verify")
def verify_library(folder: LibraryFolder = LIBRARY, as_json: Json = False) -> None:
    """Read every file and name what is damaged, missing or not the library's; exit 1 where anything is."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        faults = PromptLibrary(folder).verify()
        documents = [
            {"name": fault.name, "version": fault.version, "path": str(fault.path), "problem": fault.problem}
            for fault in faults
        ]
        lines = [f"{fault.path} {fault.problem}" for fault in faults] or [f"{folder} is whole"]
        print_result(out, {"faults": documents} if as_json else None, *lines)
        if faults:
            raise SoftPromptError(f"faults in {folder}: {len(faults)}, named above")


@library_app.command("push")
def push_prompt(
    name: Reference,
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="For all to see. Default: a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Default: the main branch.", show_default=False)
    ] = None,
    folder: LibraryFolder = LIBRARY,
    as_json: Json = False,
) -> None:
    """Put a prompt on the Hugging Face hub. Log in first: `hf auth login`, or HF_TOKEN."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        url = PromptLibrary(folder).push(name, repository, private=not public, revision=revision)
        print_result(out, {"commit": url} if as_json else None, f"Pushed {name}: {url}")


@library_app.command("pull")
def pull_prompt(
    repository: Repository,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The name to add it under. Default: the repository's.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, tag or commit.", show_default=False)
    ] = None,
    folder: LibraryFolder = LIBRARY,
    as_json: Json = False,
) -> None:
    """Add a prompt from the Hugging Face hub, one saved by PEFT too."""
    with reporting() as out:
        from softprompt.prompts.library import PromptLibrary

        entry = PromptLibrary(folder).pull(repository, name, revision=revision)
        print_result(out, _entry(entry) if as_json else None, f"Added {entry.name}@{entry.version} from {repository}")


def _entry(entry: Entry) -> dict[str, Any]:
    """One version in the library, as `--json` shows it."""
    return {
        "name": entry.name,
        "version": entry.version,
        "current": entry.current,
        "base": None if entry.card.base is None else entry.card.base.name,
        "num_virtual_tokens": entry.num_virtual_tokens,
        "bytes": entry.bytes,
        "path": str(entry.path),
        "created": entry.card.created,
        "sha256": entry.card.sha256,
    }


def _page(entry: Entry) -> Table:
    """A prompt's card to be read; `--json` has all of it."""
    table = Table(f"{entry.name}@{entry.version}", "")
    card = entry.card.model_dump(mode="json")
    card["base"] = None if entry.card.base is None else entry.card.base.name
    for key, value in card.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, one in inner:
            if one not in (None, [], {}):
                text = one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
                table.add_row(f"{key}.{name}" if name else key, shorten(text, _LONGEST_VALUE))
    return table


def _entries(entries: Sequence[Entry]) -> Table:
    table = Table("prompt", "base", "virtual tokens", "bytes", "created")
    for entry in entries:
        found = _entry(entry)
        name = f"{entry.name}@{entry.version}{' (current)' if entry.current else ''}"
        table.add_row(name, found["base"] or "?", str(entry.num_virtual_tokens), f"{entry.bytes:,}", found["created"])
    return table
