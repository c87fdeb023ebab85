"""A window's stand-in: wakes every 10 ms until stdin ends, then prints how late it was, in ms.

It does a little work each time, as a window does, and knows nothing of what it shares the machine
with.
"""

import json
import sys
import threading
import time

BEAT_S = 0.010
WORK = 20_000  # additions, about half a millisecond


def main() -> None:
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    late = []
    due = time.perf_counter() + BEAT_S
    while not ended.is_set():
        time.sleep(max(0.0, due - time.perf_counter()))
        sum(range(WORK))
        done = time.perf_counter()
        late.append((done - due) * 1e3)
        due = max(due + BEAT_S, done)
    print(json.dumps(late))


if __name__ == "__main__":
    main()
