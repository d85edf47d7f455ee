"""Names and texts as SQL and the replication commands write them.

The WAL sender's grammar takes no parameters, so what goes into its commands is quoted here.
"""


def quote_identifier(name: str) -> str:
    """Put a name in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Put a text in single quotes, as the replication grammar and standard_conforming_strings (the default) read it."""
    return "'" + text.replace("'", "''") + "'"


class Qualified:
    """A table that has a schema and a name."""

    __slots__ = ()

    schema: str
    name: str

    @property
    def qualified_name(self) -> str:
        """Schema and name with a dot, unquoted: for messages, and as the key of a table."""
        return f"{self.schema}.{self.name}"

    @property
    def sql_name(self) -> str:
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"
