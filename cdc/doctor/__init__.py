"""`cdc doctor`: everything that can be known before it hurts, each finding with a line that mends it.

`examine()` asks each of the three neighbours once and hands what it learnt to pure functions that judge it, a module a
neighbour's part. An error is something that keeps `cdc run` from working or from keeping its promises; a warning is a
risk that a person may take; info is what one had better know. Nothing is changed, but for the small probe object by
which the bucket proves that it does not overwrite. `script()` writes down what mends the findings, and runs nothing.
"""

from cdc.doctor.examine import examine as examine
from cdc.doctor.examine import exit_code as exit_code
from cdc.doctor.examine import facts as facts
from cdc.doctor.script import script as script
