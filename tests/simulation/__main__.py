"""Runs `make simulate`. The code is in budget.py, which the processes of a run can import by its name."""

import sys

from tests.simulation.budget import main

if __name__ == "__main__":
    sys.exit(main())
