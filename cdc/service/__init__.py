"""One life of `cdc run`: starts, gaps, forks, backfills, retries, and what runs beside it."""

from cdc.service.service import run as run
