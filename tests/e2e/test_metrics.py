"""What Prometheus scrapes from a real daemon."""

import socket
import urllib.request

from tests.daemons import Daemon
from tests.e2e.conftest import Chain


def test_a_scrape_shows_the_tier_and_what_engines_did(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    daemon = Daemon(tmp_path, "a", "--metrics", address)
    try:
        chain = Chain(1)
        with daemon.client() as client:
            chain.publish(client)
            client.acquire(chain.keys).release()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'p2pkv_published_blocks_total{result="stored"} 6.0' in text
        assert 'p2pkv_hit_blocks_total{source="local"} 6.0' in text
        assert 'p2pkv_tier_capacity_bytes{tier="host"}' in text
        assert 'p2pkv_members{state="alive"} 1.0' in text
    finally:
        daemon.stop()
