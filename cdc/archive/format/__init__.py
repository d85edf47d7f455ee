"""The bytes of the archive: headers, segments, lines, keys of objects, encryption. Nothing here does I/O."""
