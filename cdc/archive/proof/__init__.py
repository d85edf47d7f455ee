"""Proves that the archive is whole, remembers what was proved, and shows it as metrics."""
