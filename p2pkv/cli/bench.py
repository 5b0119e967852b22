"""`p2pkv bench`: measure this program on this machine."""

from typing import Any

import click

from p2pkv.cli.output import output_option, print_json, print_table
from p2pkv.errors import ConfigError


@click.group(short_help="Measure parts of this program on this machine.")
def bench() -> None:
    """Measure parts of this program on this machine, without a daemon."""


@bench.command()
@click.option("--nodes", type=click.IntRange(4, 200), default=20, show_default=True, help="Processes of each mesh.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Kills in each mesh.")
@click.option(
    "--rest", "rest_s", type=click.FloatRange(1, 3600), default=30, show_default=True, help="Seconds at rest, first."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides who is killed.")
@click.option("--kinship", default="", metavar="PYTHON", help="A Python with kinship, to measure it beside.")
@output_option
def detection(nodes: int, rounds: int, rest_s: float, seed: int, kinship: str, output: str) -> None:
    """Time how soon real daemons on loopback notice a SIGKILL, at LAN defaults.

    With --kinship, a mesh of kinship members of the same size runs beside it and loses members in the same moments;
    `ratio` is the median time to the first detection divided by kinship's.
    """
    from dataclasses import asdict

    from p2pkv.bench.detection import DetectionOptions, run_detection

    options = DetectionOptions(nodes=nodes, rounds=rounds, rest_s=rest_s, seed=seed, kinship=kinship)
    results, ratio = run_detection(options, progress=lambda line: click.echo(line, err=True))
    if output == "json":
        meshes = [asdict(result) for result in results]
        print_json({"benchmark": "detection", "options": asdict(options), "meshes": meshes, "ratio": ratio})
        return
    columns = [asdict(result) for result in results]
    names = [name for name in columns[0] if name not in {"implementation", "first_s", "last_s"}]
    rows = [(name, *("" if column[name] is None else f"{column[name]:g}" for column in columns)) for name in names]
    rows.append(("ratio", "" if ratio is None else f"{ratio:g}", *[""] * (len(columns) - 1)))
    print_table("detection of a SIGKILL", ("measure", *(column["implementation"] for column in columns)), rows)


@bench.command()
@click.option("--steps", type=click.IntRange(1), default=10_000_000, show_default=True, help="Random steps.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all of them.")
@click.option(
    "--arena-bytes", default="4GiB", show_default=True, metavar="SIZE", help="Of which only the books are kept."
)
@output_option
def arena(steps: int, seed: int, arena_bytes: str, output: str) -> None:
    """Put the books of host memory through random steps: blocks of seven sizes come, are pinned, evicted and dropped.

    Every place is compared with a map of pages. Says how many overlapped, what leaked, and how much of the memory is
    lost to whole pages, to the ends of chunks and to free slots of the wrong size.

    Exit codes: 0 all is well, 1 places overlapped or memory leaked.
    """
    from dataclasses import asdict

    from p2pkv.bench.arena import run_arena
    from p2pkv.config import parse_size

    found = asdict(run_arena(steps=steps, seed=seed, capacity_bytes=parse_size(arena_bytes)))
    if output == "json":
        print_json({"benchmark": "arena", **found})
    else:
        print_table("the books of host memory", ("measure", "value"), list(found.items()))
    if found["overlaps"] or found["leaked_bytes"]:
        raise SystemExit(1)


@bench.command()
@click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="Where the cache is."
)
@click.option(
    "--blocks", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Of 2 MiB, moved at once."
)
@click.option(
    "--rounds", type=click.IntRange(2, 1000), default=9, show_default=True, help="Each way and its limit in turn."
)
@output_option
def gpu(device: str, blocks: int, rounds: int, output: str) -> None:
    """Gather blocks from a paged cache on a GPU and scatter them back, beside plain copies of as many bytes.

    The cache is that of a model of 8 billion parameters: 32 layers, 8 heads of 128 in bf16, pages of 16 tokens.
    """
    from dataclasses import asdict

    try:
        from p2pkv.bench.gpu import GpuOptions, run_gpu
    except ModuleNotFoundError as exc:
        raise ConfigError(f"this needs {exc.name}", hint="run it where the engine is installed") from exc

    options = GpuOptions(device=device, blocks=blocks, rounds=rounds)
    ways = asdict(run_gpu(options))["ways"]
    if output == "json":
        print_json({"benchmark": "gpu", "options": asdict(options), "ways": ways})
        return
    print_table(
        "blocks and a paged cache",
        ("way", "limit", "GB/s", "limit, GB/s", "ratio", "p25, p75"),
        [
            (
                one["way"],
                one["limit_kind"],
                f"{one['gbps']:.2f}",
                f"{one['limit_gbps']:.2f}",
                f"{one['ratio']:.2f}",
                f"{one['ratio_p25']:.2f}, {one['ratio_p75']:.2f}",
            )
            for one in ways
        ],
    )


@bench.command()
@click.option("--peers", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Peers with a summary.")
@click.option("--blocks", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Length of the chain.")
@click.option(
    "--keys", type=click.IntRange(1, 2**24), default=100_000, show_default=True, help="Keys in each peer's summary."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides who holds what.")
@output_option
def lookup(peers: int, blocks: int, keys: int, seed: int, output: str) -> None:
    """Time the longest-prefix lookup of a chain among peers that hold prefixes of it, uniform in length.

    One peer holds all of it. The time is also given in units of 1,000 lookups in a dict of 100,000 keys, measured in
    turn with it.
    """
    from dataclasses import asdict

    from p2pkv.sim.lookups import LookupOptions, run_lookups

    options = LookupOptions(peers=peers, blocks=blocks, keys=keys, seed=seed)
    result = asdict(run_lookups(options))
    _report("lookup", f"{blocks} blocks among {peers} peers", asdict(options), result, output)


@bench.command()
@click.option(
    "--engines", type=click.IntRange(1, 64), default=4, show_default=True, help="Engines that keep the owner busy."
)
@click.option(
    "--times", type=click.IntRange(2, 100), default=10, show_default=True, help="How many times as many come."
)
@click.option(
    "--patience", type=click.FloatRange(0.1, 60), default=2.0, show_default=True, help="Of each engine, seconds."
)
@click.option("--seconds", type=click.FloatRange(1, 600), default=4.0, show_default=True, help="Of each case.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Few and many, in turn.")
@output_option
def overload(engines: int, times: int, patience: float, seconds: float, rounds: int, output: str) -> None:
    """Have two daemons of this machine serve few engines over TCP, and then many times as many, in turn.

    `goodput_ratio` is that of the many to that of the few, the median over the rounds.
    """
    from dataclasses import asdict
    from statistics import median

    from p2pkv.bench.overload import OverloadOptions, run_overload

    options = OverloadOptions(engines=engines, times=times, patience_s=patience, seconds=seconds, rounds=rounds)
    pairs = [(asdict(few), asdict(many)) for few, many in run_overload(options)]
    ratio = median(many["goodput_bytes_s"] / (few["goodput_bytes_s"] or 1.0) for few, many in pairs)
    if output == "json":
        cases = [{"few": few, "many": many} for few, many in pairs]
        print_json({"benchmark": "overload", "options": asdict(options), "goodput_ratio": ratio, "rounds": cases})
        return
    names = list(pairs[0][0])
    rows = [(name, *(f"{median(pair[which][name] for pair in pairs):.4g}" for which in (0, 1))) for name in names]
    print_table(f"overload: goodput ratio {ratio:.2f}", ("median", "few", "many"), rows)


@bench.command("match")
@click.option("--peers", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Peers with a summary.")
@click.option("--blocks", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Length of the chain.")
@click.option(
    "--keys", type=click.IntRange(1, 2**24), default=6650, show_default=True, help="Keys in each peer's summary."
)
@click.option("--rounds", type=click.IntRange(100, 100_000), default=400, show_default=True, help="Chains asked for.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides who holds what.")
@output_option
def match_and_plan(peers: int, blocks: int, keys: int, rounds: int, seed: int, output: str) -> None:
    """Time what a node takes to match a chain among its peers and to plan for it, as for an engine's acquire.

    Peers hold prefixes of the chains, uniform in length; one holds all.
    """
    from dataclasses import asdict

    from p2pkv.sim.matches import MatchOptions, run_matches

    options = MatchOptions(peers=peers, blocks=blocks, keys=keys, rounds=rounds, seed=seed)
    _report("match", f"{blocks} blocks among {peers} peers", asdict(options), asdict(run_matches(options)), output)


@bench.command()
@click.option("--peers", type=click.IntRange(2, 10_000), default=1000, show_default=True, help="Peers with a summary.")
@click.option("--keys", type=click.IntRange(500, 2**20), default=6650, show_default=True, help="Keys in each summary.")
@click.option(
    "--chains", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Chains asked for at each depth."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance.")
@output_option
def filters(peers: int, keys: int, chains: int, seed: int, output: str) -> None:
    """Count the false positives of summaries, and how often they make a lookup prefer the wrong peer."""
    from dataclasses import asdict

    from p2pkv.sim.filters import FilterOptions, run_filters

    options = FilterOptions(peers=peers, keys=keys, chains=chains, seed=seed)
    _report("filters", f"{peers} peers, {keys} keys each", asdict(options), asdict(run_filters(options)), output)


@bench.command()
@click.option(
    "--keys", type=click.IntRange(1000, 2**24), default=1_000_000, show_default=True, help="Keys in the summary."
)
@click.option(
    "--pairs", type=click.IntRange(1, 500), default=25, show_default=True, help="Keys that come, and go, in a delta."
)
@click.option("--deltas", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Deltas measured.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance.")
@output_option
def deltas(keys: int, pairs: int, deltas: int, seed: int, output: str) -> None:
    """Count the bytes of an announced change, for several ways of telling it, and what each costs a reader."""
    from dataclasses import asdict

    from p2pkv.sim.deltas import DeltaOptions, run_deltas

    options = DeltaOptions(keys=keys, pairs=pairs, deltas=deltas, seed=seed)
    _report("deltas", f"{pairs} pairs among {keys} keys", asdict(options), asdict(run_deltas(options)), output)


@bench.command()
@click.option(
    "--blocks",
    type=click.IntRange(2, 16_777_216),
    default=1_000_000,
    show_default=True,
    help="Blocks the writer holds.",
)
@click.option(
    "--chain",
    "chain_blocks",
    type=click.IntRange(1, 1_000_000),
    default=256,
    show_default=True,
    help="Blocks of a chain.",
)
@click.option(
    "--rate", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Blocks added and evicted a second."
)
@click.option("--seconds", type=click.IntRange(1, 100_000), default=60, show_default=True, help="How long.")
@click.option(
    "--nodes", type=click.IntRange(2, 100_000), default=100, show_default=True, help="Of the mesh to compute for."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides the keys.")
@output_option
def pair(**arguments: Any) -> None:
    """Count what one node's summary costs a reader while the writer's chains come and go, at a million blocks."""
    from dataclasses import asdict

    from p2pkv.sim.pairs import PairOptions, run_pair

    output = arguments.pop("output")
    options = PairOptions(**arguments)
    title = f"{options.blocks} blocks in chains of {options.chain_blocks}"
    _report("pair", title, asdict(options), asdict(run_pair(options)), output)


@bench.command()
@click.option("--nodes", type=click.IntRange(2, 10_000), default=100, show_default=True, help="Members of the ring.")
@click.option(
    "--changes", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Joins and leaves, in turn."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance.")
@output_option
def ring(nodes: int, changes: int, seed: int, output: str) -> None:
    """Measure how evenly the ring shares keys, what a change moves, and what lookups and rebuilding cost."""
    from dataclasses import asdict

    from p2pkv.sim.rings import RingOptions, run_rings

    options = RingOptions(nodes=nodes, changes=changes, seed=seed)
    _report("ring", f"{nodes} nodes, {changes} changes", asdict(options), asdict(run_rings(options)), output)


@bench.command()
@click.option("--nodes", type=click.IntRange(3, 10_000), default=100, show_default=True, help="Nodes with a directory.")
@click.option(
    "--blocks-s",
    type=click.IntRange(0, 10_000),
    default=100,
    show_default=True,
    help="Blocks that each node adds, and evicts, per second.",
)
@click.option("--stock", type=click.IntRange(3, 10_000), default=20, show_default=True, help="Chains each node holds.")
@click.option(
    "--seconds", type=click.FloatRange(1, 3600), default=20.0, show_default=True, help="How long blocks move."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance.")
@output_option
def directory(nodes: int, blocks_s: int, stock: int, seconds: float, seed: int, output: str) -> None:
    """Count what the directory sends while blocks come and go, at rest and after a change, and how right it is."""
    from dataclasses import asdict

    from p2pkv.sim.directories import DirectoryOptions, run_directories

    options = DirectoryOptions(nodes=nodes, blocks_s=blocks_s, stock=stock, seconds=seconds, seed=seed)
    title = f"{nodes} nodes, {blocks_s} blocks/s in and out of each"
    _report("directory", title, asdict(options), asdict(run_directories(options)), output)


def _report(name: str, title: str, options: dict[str, Any], result: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json({"benchmark": name, "options": options, **result})
        return
    rows = [(measure, f"{value:.4g}" if isinstance(value, float) else value) for measure, value in result.items()]
    print_table(f"{name}: {title}", ("measure", "value"), rows)


@bench.command()
@click.option("--rounds", type=click.IntRange(3, 1000), default=9, show_default=True, help="Paired rounds per case.")
@click.option("--pulls", type=click.IntRange(1, 1000), default=4, show_default=True, help="Pulls per round.")
@click.option(
    "--memory-mib", type=click.IntRange(64, 65536), default=256, show_default=True, help="Memory of each process."
)
@click.option(
    "--connections", type=click.IntRange(1, 16), default=1, show_default=True, help="Of each large pull over TCP."
)
@click.option(
    "--flow-mib-s", type=click.IntRange(0, 2**20), default=0, help="Pace each connection to this. 0: not at all."
)
@click.option(
    "--only", type=click.Choice(["shm", "tcp", "nixl"]), multiple=True, help="Only this transport; repeatable."
)
@output_option
def transfer(
    rounds: int,
    pulls: int,
    memory_mib: int,
    connections: int,
    flow_mib_s: int,
    only: tuple[str, ...],
    output: str,
) -> None:
    """Move blocks between two processes of this machine, each transport beside its limit.

    With --flow-mib-s the kernel paces each TCP connection, as a way does that limits a flow; what is made by hand has
    one connection, whatever --connections says.
    """
    from dataclasses import asdict

    from p2pkv.bench.transfer import TransferOptions, run_transfer

    options = TransferOptions(
        rounds=rounds,
        pulls=pulls,
        memory_bytes=memory_mib * 2**20,
        connections=connections,
        flow_bytes_s=flow_mib_s * 2**20,
        only=only,
    )
    cases = [asdict(case) for case in run_transfer(options)]
    if output == "json":
        print_json({"cases": cases})
        return
    print_table(
        "blocks moved between two processes",
        ["transport", "protection", "blocks", "GB/s", "limit", "ratio", "p50 ms", "p99 ms"],
        [
            [
                case["transport"],
                case["protection"],
                f"{case['blocks']} x {case['block_bytes'] // 1024} KiB",
                f"{case['gbps']:.2f}",
                f"{case['limit_gbps']:.2f} ({case['limit_kind']})",
                f"{case['ratio']:.2f} [{case['ratio_p25']:.2f}, {case['ratio_p75']:.2f}]",
                f"{case['p50_ms']:.2f}",
                f"{case['p99_ms']:.2f}",
            ]
            for case in cases
        ],
    )


@bench.command()
@click.option(
    "--python", required=True, metavar="PYTHON", help="A Python with the others; `make bench-peers` makes one."
)
@click.option("--rounds", type=click.IntRange(3, 1000), default=9, show_default=True, help="Interleaved rounds.")
@click.option("--takes", type=click.IntRange(1, 1000), default=4, show_default=True, help="Takes per system and round.")
@click.option(
    "--memory-mib", type=click.IntRange(64, 65536), default=256, show_default=True, help="Blocks that each owner holds."
)
@click.option(
    "--rest", "rest_s", type=click.FloatRange(1, 3600), default=30, show_default=True, help="Seconds at rest."
)
@click.option(
    "--part", "parts", multiple=True, metavar="PART", help="Only moves, one, lookup, limits or rest; repeatable."
)
@click.option("--system", "systems", multiple=True, metavar="SYSTEM", help="Only this system; repeatable.")
@output_option
def peers(
    python: str,
    rounds: int,
    takes: int,
    memory_mib: int,
    rest_s: float,
    parts: tuple[str, ...],
    systems: tuple[str, ...],
    output: str,
) -> None:
    """Measure this program beside the systems that people would pick, on this machine, in interleaved rounds.

    Blocks moved from the memory of another process, one block by its key, where a long prompt can be had, whether the
    limits made by hand are any good, and what an idle daemon costs.
    """
    from dataclasses import asdict

    from p2pkv.bench.peers import PARTS, SYSTEMS, PeersOptions, run_peers

    for name, known in [(part, PARTS) for part in parts] + [(system, tuple(SYSTEMS)) for system in systems]:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
    options = PeersOptions(
        python=python,
        rounds=rounds,
        takes=takes,
        memory_bytes=memory_mib * 2**20,
        rest_s=rest_s,
        parts=parts or PARTS,
        systems=systems or tuple(SYSTEMS),
    )
    result = asdict(run_peers(options, progress=lambda line: click.echo(line, err=True)))
    if output == "json":
        print_json({"benchmark": "peers", "options": asdict(options), **result})
        return
    _show_peers(result)


@bench.command()
@click.option("--folder", default=".", show_default=True, metavar="FOLDER", help="On the disk to be measured.")
@click.option(
    "--python", default="", metavar="PYTHON", help="A Python that has the others, as `make bench-tiers-env` makes."
)
@click.option("--rounds", type=click.IntRange(0, 1000), default=9, show_default=True, help="Interleaved; 0: none.")
@click.option(
    "--set", "set_bytes", default="512MiB", show_default=True, metavar="SIZE", help="Of all blocks of a size."
)
@click.option("--load", "load_s", type=click.FloatRange(0), default=10, show_default=True, help="Seconds under load.")
@click.option("--start", "start_bytes", default="10GB", show_default=True, metavar="SIZE", help="Of the store started.")
@output_option
def tiers(folder: str, python: str, rounds: int, set_bytes: str, load_s: float, start_bytes: str, output: str) -> None:
    """Measure the disk tier beside the disk's own limits, and beside what people would take instead.

    Blocks of 1 MiB and of 256 KiB are written over what is there and read back by everybody in turn; then a store is
    filled by a process that is killed, and started by another; and engines ask a daemon for what is on its disk.
    """
    from dataclasses import asdict

    from p2pkv.bench.tiers import TiersOptions, run_tiers
    from p2pkv.config import parse_size

    options = TiersOptions(
        folder=folder,
        python=python,
        rounds=rounds,
        set_bytes=parse_size(set_bytes),
        load_s=load_s,
        start_bytes=parse_size(start_bytes) if start_bytes != "0" else 0,
    )
    result = asdict(run_tiers(options, progress=lambda line: click.echo(line, err=True)))
    if output == "json":
        print_json({"benchmark": "tiers", "options": asdict(options), **result})
        return
    if result["figures"]:
        _show_moves(result["figures"])
    if result["loads"]:
        _show_loads(result["loads"])
    if result["starts"]:
        _show_starts(result["starts"])


@bench.command()
@click.option("--url", required=True, metavar="URL", help="Of an object store, as in object.url; a folder there stays.")
@click.option("--blocks", type=click.IntRange(8, 100_000), default=1000, show_default=True, help="Of 128 KiB.")
@output_option
def objects(url: str, blocks: int, output: str) -> None:
    """Measure the way of a chain through an object store, from one daemon to another that never met it.

    Credentials and the server come from the environment, as for `p2pkv serve`.
    """
    from dataclasses import asdict

    from p2pkv.bench.objects import run_objects

    result = asdict(run_objects(url, blocks, progress=lambda line: click.echo(line, err=True)))
    if output == "json":
        print_json({"benchmark": "objects", "url": url, **result})
        return
    print_table(
        "a chain through an object store",
        ("", "blocks", "MiB", "seconds", "MB/s", "runs", "ms a run", "requests"),
        [
            (
                way,
                one["blocks"],
                f"{one['moved_bytes'] / 2**20:.0f}",
                f"{one['seconds']:.2f}",
                f"{one['moved_bytes'] / one['seconds'] / 1e6:.0f}",
                one["runs"],
                f"{one['run_ms']:.1f}",
                one["requests"],
            )
            for way, one in (("put", result["put"]), ("got", result["got"]))
        ],
    )
    click.echo(f"not there: {result['absent_ms']:.1f} ms and {result['absent_requests']:.1f} requests a chain")


def _show_moves(figures: list[dict[str, Any]]) -> None:
    print_table(
        "blocks written and read back",
        ("system", "blocks", "threads", "write GB/s", "of bare", "p25", "read GB/s", "of bare", "p25"),
        [
            (
                one["system"],
                f"{one['block_bytes'] // 1024} KiB",
                one["threads"],
                *(
                    f"{one[name]:.2f}"
                    for phase in ("write", "read")
                    for name in (f"{phase}_gb_s", f"{phase}_of_bare", f"{phase}_of_bare_p25")
                ),
            )
            for one in figures
        ],
    )


def _show_loads(loads: list[dict[str, Any]]) -> None:
    names = [name for name in loads[0] if name != "patience_s"]
    print_table(
        "engines under load: deadlines kept",
        ("engines that wait", *(f"{load['patience_s']:g} s" for load in loads)),
        [(name.replace("_", " "), *(_figure(load[name]) for load in loads)) for name in names],
    )


def _show_starts(starts: list[dict[str, Any]]) -> None:
    print_table(
        "starts",
        ("blocks of", "how", "committed", "found", "compared", "ready, s"),
        [
            (
                f"{one['block_bytes'] // 1024} KiB",
                one["how"],
                one["committed"],
                one["blocks"],
                one["verified"],
                f"{one['ready_s']:.2f}",
            )
            for one in starts
        ],
    )


def _show_peers(result: dict[str, Any]) -> None:
    print_table(
        "blocks moved between two processes",
        ("system", "transport", "protection", "blocks", "GB/s", "p25, p75", "times Mooncake", "p50 ms", "p99 ms"),
        [
            (
                move["system"],
                move["transport"],
                move["protection"],
                f"{move['blocks']} x {move['block_bytes'] // 1024} KiB",
                f"{move['gbps']:.2f}",
                f"{move['gbps_p25']:.2f}, {move['gbps_p75']:.2f}",
                f"{move['ratio']:.2f}",
                f"{move['p50_ms']:.2f}",
                f"{move['p99_ms']:.2f}",
            )
            for move in result["moves"]
        ],
    )
    for part in ("one", "limits"):
        for row in result[part]:
            _rows(part, row)
    for part in ("lookup", "rest"):
        if result[part]:
            _rows(part, result[part])
    for system, reason in result["failed"].items():
        click.echo(f"{system} was not measured: {reason}", err=True)


def _figure(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _rows(title: str, row: dict[str, Any]) -> None:
    flat = {k: v for k, v in row.items() if not isinstance(v, dict)}
    flat |= {f"{k}: {name}": v for k, values in row.items() if isinstance(values, dict) for name, v in values.items()}
    print_table(title, ("measure", "value"), [(name, _figure(value)) for name, value in flat.items()])
