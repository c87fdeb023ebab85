"""A parent to be killed: starts a sidecar, keeps it busy, tells its process id, and waits.

python -m tests.sidecar.parent MODEL [starting|loading|idle|busy]
"""

import sys
import time
from pathlib import Path

import numpy as np

from tests.client import ZmqClient

model, *states = sys.argv[1:]
state = states[0] if states else "busy"
sidecar = ZmqClient(Path(model), ready=state in ("idle", "busy"), stderr=None)
if state == "busy":
    sidecar.submit("encode", {"rgb": np.zeros((9, 9, 3), np.uint8)})
    while not sidecar.ask("stats").header["queue"]["requests"]:
        pass
print(sidecar.process.pid, flush=True)
time.sleep(600)
