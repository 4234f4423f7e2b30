"""What a run says, for people: a self-contained page, a table in the terminal, a comparison of two runs. No torch."""
