"""Answering requests: many prompts on one frozen base."""
