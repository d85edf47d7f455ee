"""`cdc demo`: everything at work on servers of its own, live, and at the end a summary that was checked.

`stage` sets up the servers and the service, `workload` is the application, `meter` looks on from outside, `screen`
shows it, `summary` compares what was written with what arrived (with `replay` and `expectation`), and `play` is the
order of it all.
"""

from cdc.demo.play import run

__all__ = ["run"]
