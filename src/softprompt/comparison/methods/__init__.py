"""The methods that are compared, one file each. A new one is a file here and a line in the table."""

from __future__ import annotations

from softprompt.comparison.methods.few_shot import FewShot
from softprompt.comparison.methods.full import FullFineTuning
from softprompt.comparison.methods.lora import Lora
from softprompt.comparison.methods.method import Method
from softprompt.comparison.methods.probe import LinearProbe
from softprompt.comparison.methods.prompt import PromptTuning
from softprompt.comparison.methods.zero_shot import ZeroShot

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ZeroShot(),
        FewShot(),
        LinearProbe(),
        PromptTuning(),
        Lora(),
        FullFineTuning(),
    )
}
