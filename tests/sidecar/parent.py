"""A parent to be killed: starts a sidecar, keeps it busy, tells its process id, and waits.

python -m tests.sidecar.parent MODEL [starting|loading|idle|busy]
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.client import ROOT, ZmqClient, command

model, *states = sys.argv[1:]
state = states[0] if states else "busy"
if state == "starting":  # it has not had its line yet
    process = subprocess.Popen(
        [*command(), "serve", "--model", model],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
else:
    sidecar = ZmqClient(Path(model), ready=state != "loading", stderr=None)
    process = sidecar.process
if state == "busy":
    sidecar.submit("encode", {"rgb": np.zeros((9, 9, 3), np.uint8)})
    while not sidecar.ask("stats").header["queue"]["requests"]:
        pass
print(process.pid, flush=True)
time.sleep(600)
