"""How alike virtual tokens are, and how alike the prompts of a library.

Owns the measures and the map. Does not know what the prompts do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.bases.identity import BaseIdentity
from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.prompts.prompt import SoftPrompt

HERE = "this prompt"


@dataclass(frozen=True)
class TaskMap:
    """The prompts of a library beside each other.

    Attributes:
        names: of n prompts, such as "mood@3"; one of them is the prompt that was asked about.
        asked: which one.
        similarity: `[n, n]` cosines of the prompts' mean virtual tokens.
        places: `[n, 2]` the mean virtual tokens on a plane, by principal components; its axes have no unit.
        left_out: the names of those that can't be compared, with the reason.
    """

    names: list[str]
    asked: int
    similarity: list[list[float]]
    places: list[list[float]]
    left_out: dict[str, str]


def token_similarity(embeddings: Tensor) -> list[list[float]]:
    """`[P, P]` cosines between the virtual tokens `[P, H]`."""
    directions = torch.nn.functional.normalize(embeddings, dim=1)
    found: list[list[float]] = (directions @ directions.T).clamp(-1, 1).tolist()
    return found


def map_tasks(prompt: SoftPrompt, base: BaseIdentity, library: PromptLibrary) -> TaskMap:
    """Compare a prompt with the current versions in a library that are of its base.

    The measure is one of those by which Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt
    Transfer" (https://arxiv.org/abs/2110.07904) find related tasks: the cosine of the prompts' average tokens.

    Raises:
        SoftPromptError: the library is empty or none.
    """
    names = library.names()
    if not names:
        raise SoftPromptError(f"{library.folder} holds no prompts to compare with: see softprompt library add")
    found: dict[str, SoftPrompt] = {}
    left_out = {}
    for name in names:
        try:
            entry, other = library.entry(name), library.get(name)
            if other.card.base is None:
                raise SoftPromptError("its card does not say which base it is for")
            base.check_same(other.card.base, "the prompt asked about")
        except SoftPromptError as error:
            left_out[name] = str(error)
        else:
            found[f"{name}@{entry.version}"] = other
    same = next((name for name, other in found.items() if other.sha256 == prompt.sha256), None)
    if same is None:
        same, found = HERE, {HERE: prompt} | found
    means = torch.stack([other.embeddings.mean(dim=0) for other in found.values()])
    directions = torch.nn.functional.normalize(means, dim=1)
    return TaskMap(
        names=list(found),
        asked=list(found).index(same),
        similarity=(directions @ directions.T).clamp(-1, 1).tolist(),
        places=_flatten(directions),
        left_out=left_out,
    )


def _flatten(points: Tensor) -> list[list[float]]:
    """`[n, H]` points on a plane, `[n, 2]`."""
    from sklearn.decomposition import PCA

    if len(points) == 1:
        return [[0.0, 0.0]]
    places: list[list[float]] = PCA(n_components=2, svd_solver="full").fit_transform(points.double().numpy()).tolist()
    return places
