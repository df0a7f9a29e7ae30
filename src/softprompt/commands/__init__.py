"""The commands: each parses its arguments, calls the library and prints what comes back.

PyTorch and Transformers are imported only within the commands that need them, so that help and wrong usage answer at
once. `softprompt.cli` puts them together.
"""
