"""How each family of bases computes behind prompts."""
