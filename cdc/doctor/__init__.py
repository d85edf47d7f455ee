"""`cdc doctor` finds what can be known before it hurts, and gives each finding a line that mends it.

`examine()` asks each of the three neighbours once. Pure functions judge the answers, in a module for each part of a
neighbour. An error keeps `cdc run` from working or from keeping its promises. A warning is a risk that a person may
take. Info is good to know. Nothing is changed, except for the small probe object that proves that the bucket does not
overwrite. `script()` writes down what mends the findings, and runs nothing.
"""

from cdc.doctor.examine import examine as examine
from cdc.doctor.examine import exit_code as exit_code
from cdc.doctor.examine import facts as facts
from cdc.doctor.script import script as script
