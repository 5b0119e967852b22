"""Ten times as many engines as an owner will serve at a time, with real daemons.

How much of what it sends is of use then is measured (`p2pkv bench overload`) and simulated (`tests/sim/test_overload.py`);
this is about what may never happen however busy everybody is.
"""

import threading
import time
from pathlib import Path
from random import Random

from tests.daemons import Daemon, mesh, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.stages import GRACE_S, WIDE, check_books
from tests.e2e.test_sharing import visible

CHAIN_BLOCKS = 8
CHAINS = 12
ENGINES = 20
PATIENCE_S = 1.0
SECONDS = 2.0
GROWTH_BYTES_MAX = 64 * 2**20
SETTINGS = (
    *("--host-bytes", "64MiB", "--set", "fetch.shared_memory=false", "--set", "host.admit_fetched=second-use"),
    *("--set", f"fetch.lent_bytes_max={2 * CHAIN_BLOCKS * WIDE.block_bytes}"),  # of two engines
)


def private_bytes(daemon: Daemon) -> int:
    """Return what a daemon has in memory besides the blocks, which are in memory that can be shared."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kib) * 1024


def test_whoever_asks_too_much_is_refused_in_time_and_nobody_gets_a_wrong_byte(tmp_path):
    chains = [Chain(number, CHAIN_BLOCKS, WIDE) for number in range(1, CHAINS + 1)]
    with mesh(tmp_path, "a", "b", arguments=SETTINGS) as (a, b), a.client() as at_a, b.client() as at_b:
        for chain in chains:
            chain.publish(at_a)
        wait_until(visible(at_b, chains[-1]), "b sees what a holds")
        with at_b.acquire(chains[0].keys) as lease:
            assert chains[0].arrived(lease) == CHAIN_BLOCKS
        before = [private_bytes(one) for one in (a, b)]
        end = time.monotonic() + SECONDS
        took_s: list[float] = []
        arrived: list[int] = []
        failures: list[Exception] = []

        def engine(number: int) -> None:
            random = Random(number)
            try:
                with b.client(staging_bytes=0, timeout_s=30) as client:
                    while time.monotonic() < end:
                        chain = random.choice(chains)
                        began = time.monotonic()
                        with client.acquire(chain.keys, timeout_s=PATIENCE_S) as lease:
                            took_s.append(time.monotonic() - began)
                            arrived.append(chain.arrived(lease))
            except Exception as exc:  # noqa: BLE001 - none may come, whatever it is
                failures.append(exc)

        threads = [threading.Thread(target=engine, args=(number,)) for number in range(ENGINES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert max(took_s) < PATIENCE_S + GRACE_S
        assert 0 < sum(arrived) < CHAIN_BLOCKS * len(arrived), "it was too much, and some came all the same"
        assert at_a.status().fetch["leases_shed"] > 0, "who could not be served was told so"
        assert all(private_bytes(one) - least < GROWTH_BYTES_MAX for one, least in zip((a, b), before, strict=True))
        for daemon, client in ((a, at_a), (b, at_b)):
            check_books(daemon, client)
        for chain in chains[:3]:
            with at_b.acquire(chain.keys, timeout_s=5.0) as lease:
                assert chain.arrived(lease) == CHAIN_BLOCKS, "when it is quiet again all comes"
