"""Defines the bytes of the archive: headers, segments, lines, keys of objects, encryption. Only `key_file` does I/O."""
