"""Settings: which source wins, what is refused, and how the error helps."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.config import (
    PROFILES,
    Config,
    MeshConfig,
    Section,
    default_socket,
    describe,
    format_address,
    load,
    parse_address,
    parse_size,
    sections,
)
from p2pkv.errors import ConfigError

FIELDS = [(section, field.name) for section, kind in sections().items() for field in msgspec.structs.fields(kind)]


def settings(
    toml: str = "",
    environment: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
    *,
    folder: Path | None = None,
    profile: str = "lan",
) -> Config:
    file = None
    if toml:
        assert folder is not None
        file = folder / "p2pkv.toml"
        file.write_text(toml, encoding="utf-8")
    return load(file=file, environment=environment or {}, flags=flags, profile=profile)


# -- sources ---------------------------------------------------------------------------------------------------------


def test_without_any_source_the_defaults_hold() -> None:
    assert settings() == Config()


def test_the_defaults_expose_nothing() -> None:
    node = Config().node
    assert node.bind.startswith("127.0.0.1:")
    assert (node.insecure, node.metrics, node.join, node.advertise) == (False, "", (), "")


def test_each_later_source_wins(tmp_path: Path) -> None:
    toml = '[node]\nname = "file"\nzone = "file"\ncluster = "file"\n'
    environment = {"P2PKV_NODE_ZONE": "environment", "P2PKV_NODE_CLUSTER": "environment"}
    flags: dict[str, object] = {"node.cluster": "flag"}
    node = settings(toml, environment, flags, folder=tmp_path).node
    assert (node.name, node.zone, node.cluster) == ("file", "environment", "flag")
    assert node.bind == Config().node.bind


def test_a_profile_is_under_everything_else(tmp_path: Path) -> None:
    config = settings("[mesh]\nprobe_period_s = 7.0\n", folder=tmp_path, profile="wan")
    assert config.mesh.probe_period_s == 7.0
    assert config.mesh.probe_timeout_s == PROFILES["wan"]["mesh"]["probe_timeout_s"]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_a_valid_configuration(profile: str) -> None:
    config = msgspec.to_builtins(settings(profile=profile))
    for section, values in PROFILES[profile].items():
        for name, value in values.items():
            assert config[section][name] == value


@pytest.mark.parametrize(
    ("profile", "period_s", "timeout_s", "gossip_s", "fanout", "suspicion", "push_pull_s", "indirect", "retransmit"),
    [
        ("lan", 1, 0.5, 0.2, 3, 4, 30, 3, 4),
        ("wan", 5, 3, 0.5, 4, 6, 60, 3, 4),
        ("loopback", 0.5, 0.2, 0.1, 3, 3, 15, 1, 2),  # memberlist probes once a second there
    ],
)
def test_the_profiles_are_memberlists(
    profile: str,
    period_s: float,
    timeout_s: float,
    gossip_s: float,
    fanout: int,
    suspicion: float,
    push_pull_s: float,
    indirect: int,
    retransmit: int,
) -> None:
    mesh = settings(profile=profile).mesh
    assert (mesh.probe_period_s, mesh.probe_timeout_s) == (period_s, timeout_s)
    assert (mesh.gossip_period_s, mesh.gossip_fanout, mesh.retransmit_mult) == (gossip_s, fanout, retransmit)
    assert (mesh.suspicion_mult, mesh.push_pull_period_s, mesh.indirect_probes) == (suspicion, push_pull_s, indirect)
    assert (mesh.suspicion_max_mult, mesh.health_max) == (6, 8)


def test_lists_may_be_written_with_commas() -> None:
    flags: dict[str, object] = {"node.join": "a:1, b:2", "node.weights": "w=1", "node.also_at": ""}
    node = settings(flags=flags).node
    assert (node.join, node.weights, node.also_at) == (("a:1", "b:2"), ("w=1",), ())


def test_loading_leaves_the_profiles_as_they_are() -> None:
    before = {name: {section: dict(values) for section, values in one.items()} for name, one in PROFILES.items()}
    settings(flags={"mesh.probe_period_s": 9.0, "summary.period_s": 9.0}, profile="loopback")
    assert before == PROFILES


def test_an_unknown_profile_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="profile is 'lna', must be one of lan, wan, loopback"):
        settings(profile="lna")


@pytest.mark.parametrize(
    ("variable", "text", "section", "name", "value"),
    [
        ("P2PKV_NODE_INSECURE", "true", "node", "insecure", True),
        ("P2PKV_NODE_INSECURE", "0", "node", "insecure", False),
        ("P2PKV_NODE_JOIN", "a:1, b:2,", "node", "join", ("a:1", "b:2")),
        ("P2PKV_MESH_INDIRECT_PROBES", "5", "mesh", "indirect_probes", 5),
        ("P2PKV_MESH_PROBE_TIMEOUT_S", "0.25", "mesh", "probe_timeout_s", 0.25),
        ("P2PKV_HOST_CAPACITY_BYTES", "64MiB", "host", "capacity_bytes", 64 * 2**20),
        ("P2PKV_HOST_CAPACITY_BYTES", "67108864", "host", "capacity_bytes", 64 * 2**20),
        ("P2PKV_FETCH_ASSUMED_BANDWIDTH_BYTES_S", "1e9", "fetch", "assumed_bandwidth_bytes_s", 1e9),
        ("P2PKV_LOG_LEVEL", "debug", "log", "level", "debug"),
    ],
)
def test_variables_are_text_and_become_what_the_field_holds(
    variable: str, text: str, section: str, name: str, value: object
) -> None:
    assert getattr(getattr(settings(environment={variable: text}), section), name) == value


def test_files_and_flags_may_say_sizes_and_lists_as_people_do(tmp_path: Path) -> None:
    config = settings('[host]\ncapacity_bytes = "2GiB"\n[node]\njoin = ["a:1"]\n', folder=tmp_path)
    assert (config.host.capacity_bytes, config.node.join) == (2**31, ("a:1",))
    assert settings(flags={"node.join": ("c:3",)}).node.join == ("c:3",)
    assert settings(flags={"node.join": "c:3,d:4"}).node.join == ("c:3", "d:4")


@pytest.mark.parametrize("variable", ["P2PKV_CACHE_DIR", "P2PKV", "P2PKVX_NODE_NAME", "p2pkv_node_name", "NODE_NAME"])
def test_variables_that_are_none_of_ours_are_left_alone(variable: str) -> None:
    assert settings(environment={variable: "x"}) == Config()


def test_the_processs_own_variables_are_read_when_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PKV_NODE_NAME", "from the environment")
    assert load().node.name == "from the environment"
    assert load(environment={}).node.name == ""


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "message", "hint"),
    [
        ("[mesh]\nprobe_perod_s = 1\n", "unknown setting mesh.probe_perod_s", "did you mean probe_period_s?"),
        ("[mehs]\n", "unknown section 'mehs'", "did you mean mesh?"),
        ("[mesh]\nzzz = 1\n", "unknown setting mesh.zzz", "known are: probe_period_s, "),
        ("node = 3\n", "'node' in .* must be a table of settings", "write [node] above them"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(
    tmp_path: Path, toml: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings(toml, folder=tmp_path)
    assert str(tmp_path / "p2pkv.toml") in str(caught.value), "it says which source"
    assert caught.value.hint.startswith(hint)


def test_the_other_sources_are_named_too() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting node\.nmae in environment") as caught:
        settings(environment={"P2PKV_NODE_NMAE": "x"})
    assert caught.value.hint == "did you mean name?"
    with pytest.raises(ConfigError, match=r"unknown setting host\.size in command line"):
        settings(flags={"host.size": 1})
    with pytest.raises(ConfigError, match="unknown section 'nowhere' in command line"):
        settings(flags={"nowhere.size": 1})
    with pytest.raises(ConfigError, match=r"unknown setting node\. in command line"):
        settings(flags={"node": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mesh.probe_period_s", 0),
        ("mesh.probe_period_s", -1.0),
        ("mesh.reap_s", 86_401),
        ("mesh.indirect_probes", 17),
        ("mesh.indirect_probes", 1.5),
        ("mesh.gossip_fanout", 0),
        ("host.capacity_bytes", 2**20 - 1),
        ("host.capacity_bytes", 2**46 + 1),
        ("summary.false_positive_ratio", 0.5),
        ("summary.false_positive_ratio", 0.0),
        ("fetch.leases_max", 0),
        ("fetch.assumed_bandwidth_bytes_s", 0.0),
        ("node.cluster", ""),
        ("node.name", "x" * 65),
        ("node.join", tuple(f"h:{i}" for i in range(65))),
        ("node.insecure", "perhaps"),
        ("log.level", "loud"),
        ("log.format", "xml"),
        ("mesh.probe_timeout_s", "soon"),
        ("mesh.probe_timeout_s", float("nan")),
        ("mesh.probe_period_s", float("inf")),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_the_error_names_the_setting(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(flags={name: value})
    assert name.partition(".")[2] in str(caught.value)


def test_a_probe_that_times_out_after_the_next_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mesh.probe_timeout_s is 1.0, must be shorter than mesh.probe_period_s"):
        settings(flags={"mesh.probe_timeout_s": 1.0})
    with pytest.raises(ConfigError, match="must be shorter"):
        MeshConfig(probe_timeout_s=2.0, probe_period_s=1.0)


@pytest.mark.parametrize("content", [b"not = [toml", b"\xff\xfe", b'[node]\nname = "\xff"\n'])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load(file=file, environment={})


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            load(file=path, environment={})


# -- sizes and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("4KiB", 4096),
        (" 4 kib ", 4096),
        ("1.5MiB", 1_572_864),
        ("2GiB", 2**31),
        ("1TiB", 2**40),
        ("1GB", 10**9),
        ("0", 0),
    ],
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 gigabyte", "-1", "1e9", "0x10", "1,5GiB", "1GiB2", "9" * 400, "1.2.3"])
def test_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a number with KiB, MiB, GiB or TiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7710", "127.0.0.1", 7710),
        ("node-1.example.org:1", "node-1.example.org", 1),
        ("[::1]:7710", "::1", 7710),
        ("[fe80::1%eth0]:0", "fe80::1%eth0", 0),
        ("localhost:65535", "localhost", 65_535),
    ],
)
def test_an_address_is_a_host_and_a_port_and_is_written_back_the_same(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", ":7710", "host:", "host:65536", "host:-1", "host: 1", "host:1.0", "host:\u0663"),
        *("::1:7710", "[]:1", "host:" + "9" * 5000),
    ],
)
def test_text_that_is_no_address_is_refused_by_what_it_is_for(text: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.bind is "):
        parse_address(text, what="node.bind")


@given(st.text(max_size=30) | st.from_regex(r"\[?[a-z0-9:.%]{0,12}\]?:[0-9]{0,6}", fullmatch=True))
def test_no_text_raises_anything_else(text: str) -> None:
    for parse in (parse_address, parse_size):
        try:
            parse(text)
        except ConfigError as exc:
            assert exc.hint


def test_the_default_socket_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2PKV_NODE_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket() == Path("/run/user/7/p2pkv/p2pkv.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket().parent.name.startswith("p2pkv-")
    monkeypatch.setenv("P2PKV_NODE_SOCKET", "/elsewhere.sock")
    assert default_socket() == Path("/elsewhere.sock")


# -- the reference page is made from this ----------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "kind"), sections().items())
def test_every_setting_has_a_description_a_type_and_its_default(section: str, kind: type[Section]) -> None:
    rows = describe(kind)
    assert [name for name, *_ in rows] == [name for one, name in FIELDS if one == section]
    for name, type_name, default, description in rows:
        assert len(description) > 10, f"{section}.{name} has no description"
        assert description.endswith("."), f"{section}.{name}: a description is a sentence"
        assert type_name
        assert default == getattr(getattr(Config(), section), name)


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_a_unit_stands_in_the_name_of_every_number_that_has_one(section: str, name: str) -> None:
    value = getattr(getattr(Config(), section), name)
    if isinstance(value, float) and not isinstance(value, bool):
        assert name.endswith(("_s", "_ratio", "_mult", "_share_max")), f"{section}.{name}: of what?"
