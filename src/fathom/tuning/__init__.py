"""Training a causal model further on rows of ids, by TRL, with a loss that is a pure function of response logits.

    examples → rows (made, hashed, written) → reference columns → objective → trainer → model

`rows` makes what is learned from, before anything is trained; `head` computes any objective on response positions
alone, block by block; `fit` runs TRL's trainer. TRL is imported inside `fit`, `settings` and `trainer` only, when used.
"""
