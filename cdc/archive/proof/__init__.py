"""Proves that the archive is whole, remembers the proofs, and shows them as metrics."""
