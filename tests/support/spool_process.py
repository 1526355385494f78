"""One process of the spool's storm: appends keyed usage until it is done, and says what was acknowledged.

It writes each acknowledged key to a file of its own, after the acknowledgement: what is in that file must be counted.
"""

import os
import random
import sys
import time

from session_lifecycle.errors import SpoolError
from session_lifecycle.writing.spool import Spool


def main(path: str, acknowledged: str, process: str, items: int, max_bytes: int) -> None:
    chance = random.Random()
    spool = Spool(path, max_bytes=max_bytes, busy_seconds=60)
    descriptor = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    done = 0
    while done < items:
        count = min(chance.randrange(1, 20), items - done)
        keys = [f"{process}-{done + number}" for number in range(count)]
        try:
            spool.append(
                {
                    "kind": "usage",
                    "session_id": f"s{hash(key) % 40}",
                    "user_id": "00000000-0000-0000-0000-000000000001",
                    "model": "m",
                    "tokens_in": 1,
                    "cost_usd": "1",
                    "idempotency_key": key,
                    "key_scope": "user",
                }
                for key in keys
            )
        except SpoolError:
            time.sleep(chance.uniform(0.01, 0.1))  # nothing was kept; the drainer makes room
            continue
        os.write(descriptor, "".join(f"{key}\n" for key in keys).encode())
        done += count


if __name__ == "__main__":
    _, path, acknowledged, process, items, max_bytes = sys.argv
    main(path, acknowledged, process, int(items), int(max_bytes))
