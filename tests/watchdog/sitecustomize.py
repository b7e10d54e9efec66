"""Every interpreter that a test starts tells all its stacks on SIGUSR1, so a hang shows both sides.

`make test` puts this folder on PYTHONPATH. Forked processes inherit the handler.
"""

import faulthandler
import os
import signal

if "SHMIPC_NAMESPACE" in os.environ:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
