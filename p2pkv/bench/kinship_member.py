"""One member of a kinship mesh, as a process: `python kinship_member.py NAME HOST:PORT [SEED]`.

Run by a Python that has kinship (`requirements/bench.txt`) and need not have p2pkv, so nothing of ours is imported here.
Says where it listens on standard output, and on standard error one JSON line per change of belief with the time of the
wall clock. Ends with its standard input.
"""

import importlib
import json
import os
import sys
import threading
import time
from typing import Any

_STATES = {
    "MemberJoined": "alive",
    "MemberRecovered": "alive",
    "MemberSuspect": "suspect",
    "MemberDead": "dead",
    "MemberLeft": "left",
}


def main(name: str, bind: str, *seeds: str) -> None:
    """Run until standard input ends."""
    kinship: Any = importlib.import_module("kinship")
    blocking: Any = importlib.import_module("kinship.blocking")
    # No encryption on either side; all else as it comes.
    config = kinship.Config.lan(name=name, bind=bind, seeds=list(seeds), insecure_plaintext=True)
    cluster = blocking.Cluster(config).start()
    events = cluster.events()
    for member in cluster.members():
        _say(member.name, "alive")
    threading.Thread(target=_tell, args=(events,), daemon=True).start()
    print(json.dumps({"address": cluster.local.addr}, indent=2), flush=True)  # noqa: T201 - the answer to who started it
    while os.read(0, 4096):
        pass
    os._exit(0)  # no goodbye: whoever measures has finished


def _tell(events: Any) -> None:
    for event in events:
        state = _STATES.get(type(event).__name__)
        if state is not None:
            _say(event.member.name, state)


def _say(member: str, state: str) -> None:
    line = {"at": time.time(), "event": "member changed", "member": member, "now": state}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
