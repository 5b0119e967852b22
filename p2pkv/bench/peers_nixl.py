"""NIXL driven bare: `python -m p2pkv.bench.peers_nixl owner|taker FOLDER BLOCK_BYTES PER_LEASE BLOCKS`.

One READ of a whole lease out of the owner's registered memory, over whatever the library chooses between two processes
of one machine. No lease, no key, no digest: the floor of what a layer above it can reach. Agents meet through files.
"""

import base64
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from p2pkv.bench.peers_lines import answer_lines, area, claim_stdout, fill, is_block, lease_blocks, timed

_WAIT_S = 30.0
_PROGRESS_S = 0.001


class _Agent:
    def __init__(self, name: str, block_bytes: int, blocks: int) -> None:
        # Without this every process that made an agent crashes in the bundled libnl when it ends; see UCX_MODULES of UCX.
        os.environ.setdefault("UCX_MODULES", "^ib")
        module: Any = importlib.import_module("nixl._api")
        # Its progress thread would spin on a core that others are measured on.
        config = module.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self.agent = module.nixl_agent(name, config)
        self.area = area(blocks * block_bytes)
        start = self.area.ctypes.data
        self.memory = self.agent.register_memory([(start, self.area.nbytes, 0, "")], "DRAM")
        self.starts = [(start + number * block_bytes, block_bytes, 0) for number in range(blocks)]


def _owner(answers: IO[str], folder: Path, block_bytes: int, blocks: int) -> None:
    held = _Agent("owner", block_bytes, blocks)
    for number in range(blocks):
        fill(number, held.area[number * block_bytes : (number + 1) * block_bytes])
    told = {"metadata": base64.b64encode(held.agent.get_agent_metadata()).decode(), "starts": held.starts}
    draft = folder / "owner.draft"
    draft.write_text(json.dumps(told), encoding="ascii")
    draft.rename(folder / "owner.json")
    threading.Thread(target=_progress, args=(held.agent,), daemon=True).start()
    answer_lines(answers, {"ready": lambda: True})


def _progress(agent: Any) -> None:
    while True:  # a connection is only made while the target looks at it
        agent.get_new_notifs()
        time.sleep(_PROGRESS_S)


class _Taker:
    def __init__(self, folder: Path, block_bytes: int, per_lease: int, blocks: int) -> None:
        self.mine = _Agent("taker", block_bytes, blocks)
        self.block_bytes, self.per_lease, self.blocks = block_bytes, per_lease, blocks
        told = json.loads((folder / "owner.json").read_text(encoding="ascii"))
        agent = self.mine.agent
        owner = agent.add_remote_agent(base64.b64decode(told["metadata"]))
        agent.make_connection(owner)
        self.here = agent.prep_xfer_dlist("NIXL_INIT_AGENT", self.mine.starts, "DRAM")
        self.there = agent.prep_xfer_dlist(owner, [tuple(start) for start in told["starts"]], "DRAM")

    def take(self, lease: int) -> float:
        numbers = lease_blocks(lease, self.per_lease, self.blocks)
        agent = self.mine.agent

        def pull() -> None:
            transfer = agent.make_prepped_xfer("READ", self.here, numbers, self.there, numbers)
            state = agent.transfer(transfer)
            limit = time.monotonic() + _WAIT_S
            while state != "DONE":
                if state == "ERR" or time.monotonic() > limit:
                    raise RuntimeError(f"the transfer is in state {state}")
                state = agent.check_xfer_state(transfer)
            agent.release_xfer_handle(transfer)

        seconds = timed(pull)
        last = numbers[-1] * self.block_bytes
        if not is_block(numbers[-1], self.mine.area[last : last + self.block_bytes]):
            raise RuntimeError("wrong bytes")
        return seconds


def main(role: str, folder: str, *sizes: str) -> None:
    """Serve lines as owner or taker; the owner first."""
    answers = claim_stdout()
    block_bytes, per_lease, blocks = map(int, sizes)
    if role == "owner":
        _owner(answers, Path(folder), block_bytes, blocks)
    answer_lines(answers, {"ready": lambda: True, "take": _Taker(Path(folder), block_bytes, per_lease, blocks).take})


if __name__ == "__main__":
    main(*sys.argv[1:])
