"""An audit: a suite of attacks, a judge and the depth measures, over one model and perhaps its base.

parts     what it is made of: an attack on some behaviors, drawn in some ways, on one of the models
plan      what will be run: options, ids, parts, and the manifest that fixes them
search    what some attacks look for before they have attempts, one journalled state after another
execute   run it, over one process or many, into a run directory
verdicts  judge what was written
summary   the run directory → `audit.json`, a pure function
"""
