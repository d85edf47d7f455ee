"""Reads the log in order: its tail, its transactions, its history with forks and gaps."""
