"""Reads the log: its tail, its transactions in order, and its history with forks and gaps."""
