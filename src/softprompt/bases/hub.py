"""Whether the Hugging Face hub can be asked, found out once and in seconds.

Its libraries wait for minutes where a network is there but leads nowhere. Knows nothing of models or data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

SECONDS = 3.0
UNREACHED = (
    "is not on this machine, and the hub cannot be reached: check the name and the network (is HF_HUB_OFFLINE set?)"
)


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Within it the hub's libraries ask the hub where it answers, and else look at what it gave before.

    Yields:
        Whether it answers.
    """
    before = constants.HF_HUB_OFFLINE
    answers = not before and _answers()
    constants.HF_HUB_OFFLINE = not answers
    try:
        yield answers
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # in the types of whatever the hub's library asks with
        return False
    return True
