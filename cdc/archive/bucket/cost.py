"""Computes the cost of the bucket's operations by list prices, and of a month with a configuration (pure).

Cloudflare R2, standard storage, beyond the free million of Class A operations (PUT, LIST) a month
(https://developers.cloudflare.com/r2/pricing/). Reading is for starts and catch-ups, and costs a twelfth.
"""

from typing import Final

from cdc.config import ArchiveSettings

PUT_USD: Final = 4.50 / 1_000_000

# A month of 365.25 / 12 days, as a bill has them on average.
MONTH_S: Final = 365.25 / 12 * 86_400

# One PUT at a time, and a bucket of the same continent answers in about this: the rate without any lingering.
_LEAST_BETWEEN_PUTS_S: Final = 0.05


def per_month_usd(puts_per_s: float) -> float:
    """The dollars a month for PUTs at this rate."""
    return puts_per_s * MONTH_S * PUT_USD


def busy_month_usd(settings: ArchiveSettings) -> float:
    """The dollars a month for PUTs if traffic never pauses: a segment each `linger_s`. Large changes fill more."""
    return per_month_usd(1 / max(settings.linger_s, _LEAST_BETWEEN_PUTS_S))


def idle_month_usd(settings: ArchiveSettings) -> float:
    """The dollars a month for PUTs if nothing is published: coverage alone."""
    return per_month_usd(1 / settings.coverage_interval_s)
