"""How many response tokens deep a model's safety alignment reaches: by divergence, by recovery, and as a number."""
