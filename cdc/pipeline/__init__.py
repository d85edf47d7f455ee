"""The way of a change: stream -> assembler -> a bounded queue per sink -> progress -> status updates.

`session.py` is one replication connection from its start to its end. Two feeds stand beside each other: the archive
gates (`archive_feed.py`), the cache does not (`cache_feed.py`: live from its queue, else from the archive, else from a
snapshot). `queue.py` holds the transactions that wait for a sink, `sinks.py` the contract that a sink keeps.
"""
