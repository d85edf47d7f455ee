"""Everything we say to Postgres: sessions, the replication stream, slots, publications, snapshots.

The only room that imports psycopg. Every error of the driver leaves here as one of the kinds of `cdc.errors`.
"""
