"""Attempts in, completions out: what a model writes after an exact prompt and prefill, whatever runs it."""

from fathom.engine.transformers import TransformersEngine

__all__ = ["TransformersEngine"]
