"""The frozen base: where it is loaded from, what it says of itself, how it is called."""
