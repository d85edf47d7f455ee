"""Everything we say to Postgres: sessions, the replication stream, slots, publications, snapshots.

The only room that imports psycopg. Whatever the driver raises leaves here as one of the kinds of `cdc.errors`.
"""
