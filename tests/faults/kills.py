"""SIGKILL under load, again and again, and a verdict at the end.

The service is killed at random moments: in its start, in the middle of a PUT, between archive and acknowledgement. The
bucket is slow by a random amount meanwhile, and applies what it was sent even when the sender is dead, so that a PUT of
the old process lands among those of the new one. Then the load ends, the service catches up, and the checker judges.
"""

import random
import time
from dataclasses import dataclass

from tests.faults.checker import TABLES, Verdict, acknowledgement_sampler, cache_sampler, check
from tests.faults.objects import tail_of
from tests.faults.witness import Witness
from tests.faults.workload import Workload
from tests.support.cdc_process import Service
from tests.support.s3 import S3Server

# Long enough to get somewhere, short enough that many kills hit the start.
_UPTIME_S = (0.2, 5.0)
_PUT_DELAY_S = 0.4
_CATCH_UP_S = 300.0


@dataclass
class Run:
    verdict: Verdict
    committed: int
    kills: int
    seconds: float
    seed: int

    def __str__(self) -> str:
        return (
            f"seed={self.seed} kills={self.kills} seconds={self.seconds:.0f} committed={self.committed} {self.verdict}"
        )


def kill_under_load(
    dsn: str, service: Service, s3: S3Server, cache_url: str, *, kills: int, seconds: float, seed: int, rate: float = 60
) -> Run:
    """Kill the service so often, or until the time is up; whichever is first. `service` must not run yet."""
    dice = random.Random(seed)
    started_s = time.monotonic()
    witness = Witness(dsn, TABLES)
    service.start().wait_until_caught_up(dsn)
    acknowledgements = acknowledgement_sampler(dsn, lambda: tail_of(s3.objects()))
    with acknowledgements, cache_sampler(cache_url) as cache:
        with Workload(dsn, seed=seed, rate=rate) as workload:
            while service.kills < kills and time.monotonic() - started_s < seconds:
                s3.heal()
                s3.delay(before_s=dice.uniform(0, _PUT_DELAY_S), after_s=dice.uniform(0, _PUT_DELAY_S))
                time.sleep(dice.uniform(*_UPTIME_S))
                if not service.running:
                    break  # it ended by itself, which only the log can explain
                service.kill()
                service.start()
                witness.transactions()
        s3.heal()
        service.wait_until_caught_up(dsn, timeout_s=_CATCH_UP_S)
    exit_code = service.stop()
    verdict = check(dsn, s3.objects(), cache_url, witness.transactions())
    verdict.findings += acknowledgements.findings + cache.findings
    verdict.figures |= {"acknowledgement_samples": acknowledgements.looks, "cache_samples": cache.looks}
    if exit_code:
        verdict.findings.append(f"the service ended with {exit_code} on SIGTERM:\n{service.log_tail()}")
    committed = sum(workload.committed.values())
    return Run(verdict, committed, service.kills, time.monotonic() - started_s, seed)
