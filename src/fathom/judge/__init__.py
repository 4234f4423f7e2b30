"""Judges: an offline one for refusals, and rows of JSONL judged by any."""
