"""What a person may say under `p2pkv` in the backend's extra configuration, checked before the engine starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from p2pkv.blocks import Tenant
from p2pkv.config import nearest
from p2pkv.connectors.model_identity import canonical_json, decisive_config, weights_digest, with_config
from p2pkv.connectors.tenants import tenant_of
from p2pkv.errors import ConfigError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`p2pkv` in `--hicache-storage-backend-extra-config`."""

    socket: str = ""
    """Unix socket of this machine's daemon; empty takes `P2PKV_NODE_SOCKET` or the default place."""

    weights_id: str = ""
    """Which weights, and whatever else of the engine's settings changes KV. Empty: digest of a local model folder."""

    weights_epoch: str = "0"
    """Counts changes of the weights in place."""

    tenant: str = ""
    """Who may share, with those who have the same name and secret."""

    tenant_secret_file: str = ""
    """File with the tenant's secret."""

    fetch_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 5.0
    """Longest that one batch of pages may wait for peers."""

    def tenant_identity(self) -> Tenant:
        """Return who shares; see `tenant_of`."""
        return tenant_of(self.tenant, self.tenant_secret_file)

    def model_identity(self, model_name: str | None) -> str:
        """Return a namespace's `weights_id`.

        Raises:
            ConfigError: nothing says which weights these are.
        """
        if self.weights_id:
            return self.weights_id
        folder = Path(model_name or "")
        if not model_name or not (folder / "config.json").is_file():
            raise ConfigError(
                f"nothing says which weights {model_name or 'these'} are",
                hint='add "p2pkv": {"weights_id": "..."} to --hicache-storage-backend-extra-config',
            )
        return with_config(weights_digest(folder), decisive_config(_read(folder / "config.json")))


def settings_of(extra_config: Mapping[str, Any] | None) -> Settings:
    """Check what stands under `p2pkv`; the other names are SGLang's.

    Raises:
        ConfigError: a name is unknown or a value is not what it must be.
    """
    given = (extra_config or {}).get("p2pkv", {})
    if not isinstance(given, Mapping):
        raise ConfigError("p2pkv in the extra configuration must be a table of settings")
    known = [field.name for field in msgspec.structs.fields(Settings)]
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown setting p2pkv.{name} in the extra configuration", hint=nearest(name, known))
    try:
        return msgspec.convert(dict(given), Settings)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"p2pkv in the extra configuration: {exc}") from exc


def packing(facts: Mapping[str, object]) -> str:
    """Return what decides how a page is packed, as one text."""
    return canonical_json(facts).decode()


def _read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    return config
