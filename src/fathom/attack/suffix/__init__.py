"""Adversarial suffixes by greedy coordinate gradient (GCG): text that, typed after a request, brings the answer about.

problem    cases and targets             text       what can be typed, and where it stands
options    the knobs of a search         candidates drawn from the gradient
evaluate   gradient and losses, shared   selection  which candidate is best, for how many tokens
search     pure `init` and `step`        state      what a step leaves, one line of JSON
"""
