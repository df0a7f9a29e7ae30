"""What a soft prompt is: its tensor, how it starts, what its file says of itself, the folder it is kept in.

Knows no other room: all that it needs of a base model is `EmbeddingSource`.
"""

from softprompt.prompts.card import BaseIdentity, Card
from softprompt.prompts.initializers import EmbeddingSource
from softprompt.prompts.prompt import SoftPrompt

__all__ = ["BaseIdentity", "Card", "EmbeddingSource", "SoftPrompt"]
