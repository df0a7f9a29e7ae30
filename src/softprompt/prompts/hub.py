"""Prompts on the Hugging Face hub: a prompt's files into a repository in one commit, and out of one commit again.

Owns what a repository of a prompt holds, its README.md and the words for what the hub refuses. Does not know the
library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from softprompt.bases.hub import hub_or_cache
from softprompt.errors import SoftPromptError
from softprompt.prompts.card import Card
from softprompt.prompts.names import CONFIG, FILES, WEIGHTS
from softprompt.prompts.prompt import SoftPrompt
from softprompt.text import causes, first_line

_README = "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_LOG_IN = "`hf auth login` or HF_TOKEN"
# The HTTP library's own errors; which library that is differs between versions of huggingface_hub.
_UNREACHABLE = (
    hub_errors.OfflineModeIsEnabled,
    hub_errors.LocalEntryNotFoundError,
    hub_errors.HfHubHTTPError.__bases__[0],
    ConnectionError,
    TimeoutError,
)


def push(
    repo_id: str,
    files: Mapping[str, bytes],
    readme: str,
    message: str,
    *,
    private: bool,
    token: str | None,
    revision: str | None,
) -> str:
    """Put `files` into the repository, which is made where there is none, in one commit; return the commit's URL.

    Args:
        readme: the text of README.md, which is written where there is none.
        message: the commit's.
        private: as the repository has to be, a new one or one that is there.
        revision: the branch, made where there is none; None: the main one.

    Raises:
        SoftPromptError: the hub cannot be reached or refuses; the repository is not as private as it should be.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise SoftPromptError(_no_repository(repo_id))
    with _saying(repo_id, "pushed to"):
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if bool(api.model_info(repo_id).private) != private:
            there, asked = ("public", "private") if private else ("private", "public")
            raise SoftPromptError(
                f"repository '{repo_id}' is {there} on the hub, but a {asked} one was asked for: nothing was pushed; "
                "ask for what it is, or choose another"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        contents = dict(files)
        if _README not in _listed(api, repo_id, revision)[1]:
            contents[_README] = readme.encode()
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
        return str(commit.commit_url)


def pull(repo_id: str, *, token: str | None, revision: str | None) -> SoftPrompt:
    """Download a prompt, all of it from one commit, and check it; nothing stays on the disk.

    Raises:
        SoftPromptError: the hub cannot be reached or refuses, or what is there is no whole prompt.
    """
    with _saying(repo_id, "pulled"), TemporaryDirectory() as temporary:
        api = HfApi(token=token)
        commit, there = _listed(api, repo_id, revision)
        for file in (CONFIG, WEIGHTS):
            if file not in there:
                raise SoftPromptError(f"repository '{repo_id}' holds no prompt: it has no {file}")
        for file in FILES:
            if file in there:
                api.hf_hub_download(repo_id, file, revision=commit, local_dir=temporary)
        try:
            return SoftPrompt.load(temporary)
        except SoftPromptError as error:
            said = str(error).replace(os.path.realpath(temporary), repo_id).replace(temporary, repo_id)
            raise SoftPromptError(f"repository '{repo_id}': {said}") from None


def readme(repo_id: str, name: str, num_virtual_tokens: int, card: Card) -> str:
    """The model card, for the hub and for people. `name` is the prompt's in the library, P its virtual tokens."""
    base = None if card.base is None else card.base.name
    on_hub = base is not None and _REPOSITORY.fullmatch(base) is not None and not os.path.exists(base)
    labels = (card.task or {}).get("labels")
    facts: dict[str, object] = {"library_name": "peft", "tags": ["prompt-tuning", "soft-prompt", "softprompt"]}
    if on_hub:
        facts["base_model"] = base
    if card.task is not None:
        facts["pipeline_tag"] = "text-classification" if labels else "text-generation"
    task = json.dumps(card.task, indent=2, ensure_ascii=False)
    loader = base if on_hub else "PATH/OF/THE/BASE"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(facts, sort_keys=False).strip(),
            "---",
            f"# {name}",
            "",
            f"A soft prompt: {num_virtual_tokens} virtual tokens to put before the input of {_described(card)}. Its",
            "weights stay as they are. `card.json` says how the prompt was made.",
            "",
            "    pip install softprompt",
            f"    softprompt library pull {repo_id} {name}",
            "",
            "Or with PEFT:",
            "",
            "    from peft import PeftModel",
            "    from transformers import AutoModelForCausalLM",
            "",
            f'    model = AutoModelForCausalLM.from_pretrained("{loader}")',
            f'    model = PeftModel.from_pretrained(model, "{repo_id}")',
            *(["", "Its task:", "", *(f"    {line}" for line in task.splitlines())] if card.task else []),
            "",
        ]
    )


def _described(card: Card) -> str:
    if card.base is None:
        return "a language model that its card does not name"
    return f"the frozen language model `{card.base.name}` ({card.base.architecture}, H={card.base.hidden_size})"


def _listed(api: HfApi, repo_id: str, revision: str | None) -> tuple[str | None, set[str]]:
    """The newest commit of the branch, and the names of its files."""
    found = api.model_info(repo_id, revision=revision)
    return found.sha, {file.rfilename for file in found.siblings or []}


@contextmanager
def _saying(repo_id: str, done: str) -> Iterator[None]:
    """Whatever the hub or its library stumbles over becomes one line; and no progress bars for a few kilobytes."""
    shows_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        validate_repo_id(repo_id)
        with hub_or_cache():
            yield
    except SoftPromptError:
        raise
    except Exception as error:
        raise SoftPromptError(_explain(repo_id, done, error)) from error
    finally:
        if shows_bars:
            enable_progress_bars()


def _explain(repo_id: str, done: str, error: Exception) -> str:
    where = f"repository '{repo_id}'"
    found = [*causes(error)]
    if any(isinstance(cause, hub_errors.GatedRepoError) for cause in found):
        return f"{where} is gated: accept its terms on the hub, then log in with {_LOG_IN}"
    if any(isinstance(cause, hub_errors.HFValidationError) for cause in found):
        return _no_repository(repo_id)
    for cause in found:
        if isinstance(cause, hub_errors.RevisionNotFoundError):
            return f"{where} has no such revision on the hub"
        if isinstance(cause, hub_errors.RepositoryNotFoundError):
            return f"there is no {where} on the hub, or you may not see it: check the name, or log in with {_LOG_IN}"
        if isinstance(cause, hub_errors.HfHubHTTPError):
            status = cause.response.status_code
            if status == 401:
                return f"{where} cannot be {done}: the hub does not know who you are; log in with {_LOG_IN}"
            if status == 403:
                return f"{where} cannot be {done}: your token does not allow it; log in with {_LOG_IN} as one who may"
            return f"{where} cannot be {done}: the hub answered {status}: {first_line(cause)}"
    if any(isinstance(cause, _UNREACHABLE) for cause in found):
        return f"{where} cannot be {done}: the hub cannot be reached; check the network (is HF_HUB_OFFLINE set?)"
    return f"{where} cannot be {done}: {first_line(found[-1])}"


def _no_repository(repo_id: str) -> str:
    return f"'{repo_id}' can't be the name of a repository on the hub: write OWNER/NAME"
