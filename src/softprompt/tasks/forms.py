"""Tasks that go by a name: rows in forms that many data sets share.

Owns each form's template, target and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from softprompt.tasks.rows import ANSWER, CONVERSATION


@dataclass(frozen=True)
class Form:
    """A form of rows.

    Attributes:
        template, target: as in a task.
        columns: by which a table is known to be of this form.
        empty: the columns that may be empty, with what stands for them then.
    """

    template: str
    target: str
    columns: frozenset[str]
    empty: dict[str, str] = field(default_factory=dict)


FORMS = {
    "alpaca": Form(
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "{output}",
        frozenset({"instruction", "output"}),
        {"input": ""},
    ),
    "completion": Form("{prompt}", "{completion}", frozenset({"prompt", "completion"})),
    "messages": Form(f"{{{CONVERSATION}}}\nAssistant:", f" {{{ANSWER}}}", frozenset({CONVERSATION, ANSWER})),
}
