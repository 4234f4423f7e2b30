"""Making alignment deeper: training on recoveries, at every depth where an answer can be turned back into a refusal."""
