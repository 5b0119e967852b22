"""Imports point down, cores touch nothing, and only connectors know engines.

The order of layers is that of docs/design/ARCHITECTURE.md. A module that is new must be given its place here.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("mesh", "transport", "index", "sim")

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"blocks", "running_digest"}),
    frozenset({"layouts", "part_bytes"}),
    frozenset({"config"}),
    frozenset({"transport.keyring"}),
    frozenset({"transport.wire"}),
    frozenset({"effects"}),
    frozenset(
        {
            *("mesh", "index", "links", "load", "planner", "fetch", "eviction", "slots", "generations", "ledger"),
            *(
                "breaker",
                "quantile",
                "nearness",
                "costs",
                "plans",
                "fetches",
                "questions",
                "moving",
                "hedges",
                "shedding",
                "admission",
                "scores",
                "forwarding",
                "replication",
                "pins",
            ),
            "neighbours",
            "checkup",
        }
    ),
    frozenset({"tiers.object.runs"}),
    frozenset({"own_keyring", "grants", "announced", "hand_over", "demotions", "promotions", "disk_moves"}),
    frozenset({"run_costs", "run_writes", "run_reads", "object_moves"}),
    frozenset({"acquires", "hints"}),
    frozenset({"assemblies", "part_pulls", "deliveries", "push"}),
    frozenset({"parts"}),
    frozenset({"rotation"}),
    frozenset({"node"}),
    frozenset(
        {
            *(
                "transport",
                "tiers",
                "discovery",
                "local_wire",
                "block_file",
                "keyring_file",
                "certificate_files",
                "authority",
                "logs",
                "metrics",
            ),
            *("local_socket", "identity", "locked_folder"),
        }
    ),
    frozenset({"staging", "runner", "local_views", "local_explain"}),
    frozenset({"client", "client_parts", "transfer", "part_transfer", "local_parts", "local_server"}),
    frozenset({"neighbourhood", "protection", "own_certificate"}),
    frozenset({"fabric", "echoes", "probes", "host_condition", "disk_tier", "object_tier"}),
    frozenset({"paths"}),
    frozenset({"client", "transfer", "local_server", "neighbourhood", "protection", "own_certificate"}),
    frozenset({"guard", "direct_asks", "take_over"}),
    frozenset({"connectors", "agent"}),
    frozenset({"score_http"}),
    frozenset({"daemon", "blocking", "nodes", "demo", "sim", "bench", "testing", "cli"}),
)
"""Lowest first. A module imports from its own layer and from those below; the most particular name counts."""

STRANGERS = [
    ("mesh", "index"),
    ("index", "mesh"),
    ("tiers", "transport"),
    ("transport", "tiers"),
    ("client", "node"),
    ("client", "runner"),
    ("client_parts", "node"),
    ("client_parts", "runner"),
    ("staging", "node"),
    ("connectors", "node"),
    ("connectors", "agent"),
    ("connectors", "cli"),
    ("demo", "node"),
    ("demo", "agent"),
    ("agent", "connectors"),
    ("sim", "agent"),
    ("sim", "runner"),
    ("sim", "daemon"),
    ("sim", "transfer"),
    ("sim", "local_server"),
    ("sim", "testing"),
    ("cli", "testing"),
]
"""(who, whom) that the order alone would allow."""

CORES = {
    *(
        "blocks",
        "running_digest",
        "effects",
        "slots",
        "ledger",
        "eviction",
        "links",
        "load",
        "planner",
        "fetch",
        *(
            "breaker",
            "quantile",
            "nearness",
            "costs",
            "plans",
            "fetches",
            "questions",
            "moving",
            "hedges",
            "shedding",
            "admission",
            "scores",
            "forwarding",
            "replication",
            "pins",
        ),
        "grants",
        "acquires",
        "announced",
        "demotions",
        "promotions",
        "disk_moves",
        "run_costs",
        "run_writes",
        "run_reads",
        "object_moves",
        "layouts",
        "part_bytes",
        "assemblies",
        "part_pulls",
        "deliveries",
        "push",
        "parts",
        "neighbours",
        "own_keyring",
        "rotation",
        "node",
    ),
    *("mesh", "index", "transport.wire", "transport.framing", "transport.bulk_header"),
    *("transport.keyring", "transport.replay", "transport.subkeys", "transport.records"),
    *("transport.fabrics", "transport.choices", "transport.shares", "transport.widths", "checkup"),
    *("transport.bulk_protection", "transport.mac"),
    *("tiers.disk.label", "tiers.disk.hints", "tiers.disk.pace"),
    *("tiers.object.runs", "tiers.object.pack", "tiers.object.service", "tiers.object.location"),
    *("connectors.vllm.scheduling", "connectors.vllm.chains", "connectors.vllm.pace"),
}
OUTSIDE = {
    *("trio", "anyio", "asyncio", "threading", "multiprocessing", "concurrent", "selectors", "signal", "subprocess"),
    *("socket", "ssl", "time", "datetime", "secrets", "uuid", "tempfile", "pathlib", "io", "os", "mmap", "fcntl"),
    *("logging", "structlog", "prometheus_client", "torch", "transformers"),
}
ENGINES = {"lmcache", "torch", "triton", "cupy", "transformers", "vllm", "sglang", "gguf", "safetensors", "tokenizers"}
SHELLS = {
    *("echoes", "paths", "direct_asks", "disk_tier", "object_tier", "transport.direct"),
    *(
        "agent",
        "runner",
        "transfer",
        "neighbourhood",
        "local_server",
        "protection",
        "daemon",
        "score_http",
        "blocking",
        "testing",
    ),
    *("part_transfer", "local_parts", "transport.part_streams"),
    *("transport.shm", "transport.shm_serve", "transport.offload", "transport.remaining", "transport.choose"),
    "transport.tcp_pull",
    *("transport.nixl_pull", "transport.fabric_serve"),
    "bench.handshake",
    *("bench.lent", "bench.fabric", "bench.peers_known", "bench.peers_limits", "bench.peers_lmcache", "bench.transfer"),
    *("transport.handshake", "transport.streams", "transport.tcp", "transport.udp", "discovery"),
    *("transport.sealed_handshake", "transport.sealed_stream", "transport.session_handshake", "transport.bulk_keys"),
    *("guard", "own_certificate", "transport.tls", "transport.tls_handshake", "transport.doorkeeper"),
    "tiers.object.remote",  # obstore reports to a loop of asyncio
    "connectors.lmcache",  # LMCache calls from one
}
"""Who may import trio. An engine that attaches to a daemon must not carry an event loop around."""


@dataclass(frozen=True)
class Import:
    module: str
    """Whole name of what is imported."""
    name: str
    """What is taken from it, or empty."""
    line: int


def modules() -> dict[str, Path]:
    """Return every module of the package by its name below `p2pkv`, links followed by hand."""
    found: dict[str, Path] = {}
    for folder, prefix in [(ROOT / "p2pkv", ""), *((ROOT / name, f"{name}.") for name in LINKED)]:
        for path in sorted(folder.rglob("*.py")):
            relative = path.relative_to(folder).with_suffix("")
            if relative.parts[0] in LINKED and not prefix:
                continue  # some Pythons follow links in rglob
            name = prefix + ".".join(relative.parts)
            found[name.removesuffix("__init__").rstrip(".")] = path
    found.pop("")  # p2pkv itself serves names from everywhere
    found.pop("__main__")
    return found


MODULES = modules()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return all imports, those inside functions too."""
    return tuple(_walk(module))


def _walk(module: str) -> Iterator[Import]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield from (Import(node.module or "", alias.name, node.lineno) for alias in node.names)


def own(found: Import) -> str:
    """Return the module of ours that an import reaches, below `p2pkv`, or nothing."""
    if not (found.module + ".").startswith("p2pkv."):
        return ""
    below = found.module.removeprefix("p2pkv").lstrip(".")
    deeper = f"{below}.{found.name}".strip(".")
    return deeper if deeper in MODULES else below


def top(found: Import) -> str:
    return found.module.partition(".")[0]


def is_in(module: str, names: set[str] | frozenset[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def layer(module: str) -> int:
    """Return the number of the layer that names `module` most particularly."""
    places = [(len(name), number) for number, names in enumerate(LAYERS) for name in names if is_in(module, {name})]
    assert places, f"p2pkv.{module} has no layer: give it one in {Path(__file__).name}"
    return max(places)[1]


def below(names: set[str]) -> list[str]:
    return [module for module in MODULES if is_in(module, names)]


def not_below(names: set[str]) -> list[str]:
    return [module for module in MODULES if not is_in(module, names)]


def reached(outside: set[str], modules: list[str]) -> list[str]:
    """Return where `modules` import what is `outside`."""
    return [
        f"{module}, line {found.line}: {found.module}"
        for module in modules
        for found in imports(module)
        if top(found) in outside
    ]


def test_imports_point_down() -> None:
    wrong = []
    for module in MODULES:
        here = layer(module)
        for found in imports(module):
            target = own(found)
            if target and layer(target) > here:
                wrong.append(f"line {found.line}: {module} is below {target}")
    assert wrong == []


@pytest.mark.parametrize(("who", "whom"), STRANGERS)
def test_strangers_do_not_know_each_other(who: str, whom: str) -> None:
    mine = below({who})
    assert mine
    assert below({whom})
    for module in mine:
        for found in imports(module):
            assert not is_in(own(found), {whom}) or own(found) == "transport.wire", f"{module}, line {found.line}"


def test_cores_touch_nothing_outside() -> None:
    assert reached(OUTSIDE, below(CORES)) == []


def test_chance_comes_from_outside() -> None:
    """`Random` is a type to be given one; the functions of the module share a state that no seed of ours sets."""
    for module in below(CORES | {"sim"}):
        for found in imports(module):
            assert found.module != "random" or found.name == "Random", f"{module}, line {found.line}"
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and node.attr == "random" and isinstance(node.value, ast.Name):
                assert node.value.id not in {"np", "numpy"}, f"{module}, line {node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Random":
                assert node.args or node.keywords, f"{module}, line {node.lineno}: Random() seeds itself from the clock"


def test_only_connectors_and_the_demo_know_engines() -> None:
    assert reached(ENGINES, not_below({"connectors", "demo", "tiers.gpu", "tiers.gpu_kernels"})) == []


def test_only_shells_know_trio() -> None:
    assert reached({"trio", "asyncio", "anyio"}, not_below(SHELLS)) == []


@pytest.mark.parametrize(
    ("library", "knows"),
    [
        ("nixl", "transport.nixl"),
        ("nixl_cu12", "transport.nixl"),
        ("nixl_cu13", "transport.nixl"),
        ("obstore", "tiers.object.remote"),
    ],
)
def test_one_file_knows_a_library(library: str, knows: str) -> None:
    """And what is measured beside us. Names of libraries are also looked for in strings: some are imported by name."""
    for module in sorted(MODULES.keys() - {knows, "bench.peers_nixl", "bench.tiers_others"}):
        text = MODULES[module].read_text(encoding="utf-8")
        for found in imports(module):
            assert top(found) != library, f"{module}, line {found.line}"
        if library != "nixl":  # which is also what users call the transport
            assert library not in re.sub(r'[".()]', " ", text).split(), module


def test_only_what_is_made_for_tests_needs_their_tools() -> None:
    assert reached({"pytest", "hypothesis"}, not_below({"testing"})) == []


def test_the_walk_sees_what_it_should() -> None:
    """Or else everything above would pass on an empty list."""
    assert {"errors", "node", "mesh.members", "transport.wire", "index.hashing", "cli.main", "sim.world"} <= set(
        MODULES
    )
    assert sum(1 for module in MODULES for _ in imports(module)) > 300
    assert {own(found) for found in imports("node")} >= {"config", "mesh.membership", "index.exchange"}
    assert layer("transport.wire") < layer("mesh.members") < layer("node") < layer("transport.tcp")
    assert any(top(found) == "trio" for found in imports("transport.tcp"))


@pytest.mark.parametrize("name", LINKED)
def test_the_folders_cannot_be_imported_under_their_bare_names(name: str) -> None:
    """There would be two copies of every class, and `except` would not catch the other's."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"ImportError: import p2pkv.{name}, not {name}" in done.stderr


@pytest.mark.parametrize("name", LINKED)
def test_the_links_are_relative(name: str) -> None:
    """Or else a clone elsewhere would import from here."""
    link = ROOT / "p2pkv" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"
