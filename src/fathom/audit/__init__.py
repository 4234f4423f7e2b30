"""An audit: a suite of attacks, a judge and the depth measures, over one model and perhaps its base.

plan      what will be run: options, ids, attempts, and the manifest that fixes them
execute   run it, over one process or many, into a run directory
verdicts  judge what was written
summary   the run directory → `audit.json`, a pure function
"""
