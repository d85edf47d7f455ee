"""Writes the archive: makes segments and chunks, and PUTs them one after another."""
