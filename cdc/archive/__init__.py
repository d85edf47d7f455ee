"""The archive keeps every committed change off this machine, append-only. No other package imports aioboto3.

Its floors, from below: `format` defines the bytes of an object, `bucket` stores objects, `proof` shows that all of them
are there, `reader` finds the tail and the history, `writer` is the sink, `state` adds the log up to tables.
"""
