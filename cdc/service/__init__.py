"""One life of `cdc run`: starts, gaps, forks, backfills, retries, and the companion tasks."""

from cdc.service.service import run as run
