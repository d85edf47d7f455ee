"""The database that a restore writes to: its tables, statements, side schemas and scratch databases."""
