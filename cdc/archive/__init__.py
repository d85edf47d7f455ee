"""The archive: every committed change, off the box, append-only. The only room that imports aioboto3.

Its floors, from below: `format` holds what an object's bytes mean (pure), `bucket` where objects live, `proof` that all
of them are there, `reader` the tail and the history, `writer` the sink, `state` the tables that the log adds up to.
"""
