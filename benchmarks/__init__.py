"""Benchmarks: one file per claim. Each prints a Markdown table and writes JSON to `results/`, naming its command.

`python -m benchmarks.training_step`: what a step costs and, on request, how long a prompt takes to learn.
`python -m benchmarks.quality`: how good prompts are, and why the defaults are what they are.
"""
