"""Attacks turn behaviors into attempts: exact ids and sampling, nothing generated."""
