import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import msgspec
import pytest

from p2pkv.config import parse_size
from p2pkv.connectors.vllm.settings import Settings, settings_of
from p2pkv.errors import ConfigError


def test_nothing_needs_to_be_said():
    assert settings_of({}) == Settings()


def test_a_misspelt_name_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="unknown setting in kv_connector_extra_config: fetch_timeout") as caught:
        settings_of({"fetch_timeout": 3})
    assert caught.value.hint == "did you mean fetch_timeout_s?"


@pytest.mark.parametrize(
    "wrong", [{"fetch_timeout_s": 0}, {"fetches": "four"}, {"save_buffer_bytes": 1}, {"save_generated": "no"}]
)
def test_values_are_checked(wrong):
    with pytest.raises(ConfigError, match=f"kv_connector_extra_config: .*{next(iter(wrong))}"):
        settings_of(wrong)


def test_a_tenant_has_its_secret_from_a_file(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"s3cret\n")
    tenant = settings_of({"tenant": "acme", "tenant_secret_file": str(path)}).tenant_identity()
    assert (tenant.name, tenant.secret) == ("acme", b"s3cret")
    assert settings_of({"tenant": "acme"}).tenant_identity().hashing_key() != tenant.hashing_key()


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [(None, "acme", "No such file"), (b"\n", "acme", "is empty"), (b"s", "", "without tenant")],
)
def test_a_secret_that_cannot_be_had_stops_the_engine(tmp_path, text, named, message):
    path = tmp_path / "secret"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        settings_of({"tenant": named, "tenant_secret_file": str(path)}).tenant_identity()


GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "vllm.md"
SOURCES = Path(__file__).parents[3] / "p2pkv" / "connectors" / "vllm"


def test_every_setting_is_in_the_guide_with_its_default():
    text = GUIDE.read_text()
    for field in msgspec.structs.fields(Settings):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{field.name}` |")]
        shown = row.split("|")[2].strip().strip('`"')
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert (parse_size(shown) if "B" in shown else float(shown)) == field.default
        elif field.default != "":
            assert shown == str(field.default).lower()


def test_every_count_is_in_the_guide():
    text = GUIDE.read_text()
    named = r'counts\[f?"([a-z_]+)|tally\.add\("([a-z_]+)"'
    counts = {a or b for path in SOURCES.glob("*.py") for a, b in re.findall(named, path.read_text())}
    assert len(counts) > 12
    for name in counts:
        assert f"`{name}" in text, name


def test_the_entry_point_is_where_vllm_looks_and_loads_nothing():
    (entry,) = entry_points(group="vllm.general_plugins", name="p2pkv") or [None]
    if entry is not None:  # a checkout that is only on the path has no metadata
        assert entry.value == "p2pkv.connectors.vllm.plugin:register"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import p2pkv.connectors.vllm.plugin"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "p2pkv" in loaded
    assert not loaded & {"vllm", "torch", "numpy", "msgspec", "trio"}
