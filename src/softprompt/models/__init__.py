"""The frozen base, and how a prompt meets it."""
