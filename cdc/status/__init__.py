"""`cdc status` shows on one screen whether all is well, also when one of the three neighbours cannot be reached.

`neighbours` asks them, `verdict` judges their answers (pure), and `screen` prints. Exit code 0: all is well. 1:
something is wrong, and may mend itself. 78: a person must decide.
"""

from cdc.status.examine import examine as examine
from cdc.status.screen import facts as facts
from cdc.status.screen import lines as lines
from cdc.status.verdict import Status as Status
