"""Postgres's logical replication stream, from bytes to words: frames, messages, transactions.

Pure: nothing here awaits, logs or reads a clock, and mypyc compiles it as it stands.
"""
