"""fathom measures how many tokens deep a language model's safety alignment is, and attacks, deepens and protects it."""

__version__ = "0.1.0"

__all__ = ["__version__"]
