"""waltier: change data capture from the WAL of Postgres to an append-only archive and a warm Redis cache."""

__version__ = "0.1.0"
