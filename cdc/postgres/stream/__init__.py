"""The replication stream: one connection, its socket, and the session that watches for a shutdown."""
