"""Adds the log up to the state of tables, and compares states by digests or by sorted runs."""
