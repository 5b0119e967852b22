"""The programs in examples/ run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda program: program.name)
def test_an_example_runs(program: Path) -> None:
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_two_nodes_says_where_the_blocks_came_from() -> None:
    command = [sys.executable, str(EXAMPLES / "two_nodes.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "first node: stored 10 blocks of 32768 bytes",
        "second node: 10 of 10 blocks, byte for byte the same",
        "  10 blocks, 327680 bytes from node 'first' over shm",
        "second node, asked again: 10 blocks over local",
    ]


def test_push_by_layer_shows_each_layer_before_the_next_is_made() -> None:
    command = [sys.executable, str(EXAMPLES / "push_by_layer.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "decode node: accepted, takes 8 of 8 blocks",
        *(f"decode node: layer {layer} of 8 blocks, byte for byte the same" for layer in range(4)),
        "prefill node: stored",
        "decode node: 8 blocks to offer to others",
    ]
