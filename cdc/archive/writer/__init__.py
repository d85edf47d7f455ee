"""The one writer of the archive: it makes segments and chunks, and PUTs them one after another."""
