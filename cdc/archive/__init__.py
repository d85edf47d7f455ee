"""The archive: every committed change, off the box, append-only. The only room that imports aioboto3.

`segment` and `header` say what an object holds (pure), `bucket` where objects live, `tail` how far the archive is,
`cut` how a batch becomes segments (pure), `sink` writes, `reader` and `verify` read.
"""
