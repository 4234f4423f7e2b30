"""From what a user typed to a run: names resolved, models loaded, files written, each mistake one line.

One module per family of verbs; `request` holds what they share. All are light to import: what needs torch is imported
where it is used, so that a wrong option is an error at once and not after seconds of loading.
"""
