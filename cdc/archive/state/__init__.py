"""The tables as they were: rows folded from the log, compared by digest or by sorted runs."""
