"""Every interpreter of a shifted run begins with this: `time.sleep` works there.

libfaketime 0.9.10 shifts the absolute moment that `time.sleep` waits for, although the clock of that moment is the one
that was to be left alone: each sleep is refused with EINVAL. select() waits for a span of time. Replaced before anybody
imports it, because psutil remembers the function as a default argument.
"""

import select
import time

time.sleep = lambda seconds: select.select([], [], [], float(seconds)) and None
