"""The way of a change: stream -> assembler -> a bounded queue per sink -> progress -> status updates.

`session.py` is one replication connection from its start to its end; `queue.py` what waits for a sink; `cache_feed.py`
where the cache takes its changes from: live from its queue, else from the archive, else from a snapshot.
"""
