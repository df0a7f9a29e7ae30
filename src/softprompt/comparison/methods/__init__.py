"""What is compared: one file for each method.

Owns the table of methods and its order.
"""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.comparison.methods.few_shot import FewShot
from softprompt.comparison.methods.full import Full
from softprompt.comparison.methods.lora import Lora
from softprompt.comparison.methods.method import Method
from softprompt.comparison.methods.prompt import Prompt
from softprompt.comparison.methods.zero_shot import ZeroShot
from softprompt.errors import SoftPromptError

METHODS: dict[str, Method] = {one.name: one for one in (ZeroShot(), FewShot(), Prompt(), Lora(), Full())}


def check_methods(methods: Sequence[str]) -> list[str]:
    """The methods, each once, in the table's order.

    Raises:
        SoftPromptError: one is unknown, or there is none.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise SoftPromptError(f"methods: {', '.join(unknown) or 'none'}: choose of {', '.join(METHODS)}")
    return [method for method in METHODS if method in methods]
