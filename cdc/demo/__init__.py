"""`cdc demo`: shows everything at work on servers of its own, live, and ends with a summary that was checked.

`stage` sets up the servers and the service. `workload` is the application. `meter` measures from outside, and `screen`
shows the figures. `summary` compares what was written with what arrived, by `replay` and `expectation`. `play` puts
them in order.
"""

from cdc.demo.play import run

__all__ = ["run"]
