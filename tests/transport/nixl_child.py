"""Processes that use NIXL bare or the way this project does, for `test_nixl_traps.py`: `python nixl_child.py WHAT [ours]`.

Standard input is read and standard output written in lines of JSON. A process of its own for each, because most of what
is shown here is the end of one.
"""

import base64
import json
import mmap
import os
import sys
from typing import Any

import numpy as np

BYTES = 4 * 2**20
SETTINGS = {"UCX_TLS": "cma,tcp", "UCX_NET_DEVICES": "lo", "NIXL_LOG_LEVEL": "FATAL"}


def bare(name: str, *, spins: bool = False) -> tuple[Any, Any]:
    """Make an agent without what `p2pkv.transport.nixl` does about it."""
    import nixl_cu12._bindings as library

    config = library.nixlAgentConfig()
    config.useProgThread = True
    config.pthrDelay = 0 if spins else 10_000
    config.syncMode = library.NIXL_THREAD_SYNC_STRICT
    agent = library.nixlAgent(name, config)
    agent.createBackend("UCX", {})
    return library, agent


def ours(name: str) -> Any:
    from p2pkv.transport.fabrics import HostFacts, library_settings
    from p2pkv.transport.nixl import NixlAgent

    return NixlAgent(name, library_settings(HostFacts(reach="x", interfaces=("lo",))))


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def idle(*, with_care: bool) -> None:
    kept = ours("idle") if with_care else bare("idle", spins=True)
    say(ready=True)
    sys.stdin.readline()
    del kept


def leave(*, with_care: bool) -> None:
    kept = ours("leave") if with_care else bare("leave")
    say(ready=True)
    del kept


def lend(*, with_care: bool) -> None:
    """Lend memory, and unmap it when told to: at once, or after leaving the fabric."""
    if with_care:
        from p2pkv.transport.nixl import Region, reach

        memory = mmap.mmap(-1, BYTES)
        agent = ours("owner")
        address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
        agent.register(Region(address, BYTES))
        say(metadata=base64.b64encode(agent.metadata()).decode(), reach=reach())
        sys.stdin.readline()
        agent.close()
        del address  # the view that it came from is gone too
        memory.close()
    else:
        memory = mmap.mmap(-1, BYTES)
        library, agent = bare("owner/x")
        address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
        agent.registerMem(library.nixlRegDList(library.DRAM_SEG, [(address, BYTES, 0, "")]))
        say(metadata=base64.b64encode(agent.getLocalMD()).decode(), reach="")
        sys.stdin.readline()
        del address  # the view that it came from is gone too
        memory.close()
    say(unmapped=True)
    sys.stdin.readline()


def take(tls: str) -> None:
    """Read from whoever's metadata comes on a line, as often as lines come, and say how that went."""
    os.environ["UCX_TLS"] = tls
    library, agent = bare("taker")
    memory = mmap.mmap(-1, BYTES)
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    agent.registerMem(library.nixlRegDList(library.DRAM_SEG, [(address, BYTES, 0, "")]))
    from p2pkv.transport.nixl import region_untrusted

    say(ready=True)
    for line in sys.stdin:
        metadata = base64.b64decode(json.loads(line))
        theirs = region_untrusted(metadata, BYTES, node="owner")
        try:
            name = os.fsdecode(agent.loadRemoteMD(metadata))
            handle = agent.createXferReq(
                library.NIXL_READ,
                library.nixlXferDList(library.DRAM_SEG, [(address, BYTES, 0)]),
                library.nixlXferDList(library.DRAM_SEG, [(theirs.address, BYTES, 0)]),
                name,
                b"",
                [],
            )
            state = agent.postXferReq(handle, b"")
            while state == library.NIXL_IN_PROG:
                state = agent.getXferStatus(handle)
            say(done=state == library.NIXL_SUCCESS)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the test wants its name
            say(error=type(exc).__name__)


if __name__ == "__main__":
    os.environ.update(SETTINGS)
    what, care = sys.argv[1], sys.argv[2:] == ["ours"]
    if what == "take":
        take(sys.argv[2])
    else:
        {"idle": idle, "leave": leave, "lend": lend}[what](with_care=care)
