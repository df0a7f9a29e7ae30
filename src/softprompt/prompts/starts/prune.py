"""The start of a prompt that another one was pruned to: those of its virtual tokens that were kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.prompts import starts


def remake(base: Base, said: Mapping[str, Any], num_virtual_tokens: int) -> Tensor:
    """The values again, from what a card says of them."""
    whole = starts.remake(base, said["initialisation"], said["num_virtual_tokens"])
    return whole[torch.tensor(said["kept"], dtype=torch.long)]
