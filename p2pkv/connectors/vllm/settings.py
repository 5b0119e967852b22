"""What a person may say in `kv_connector_extra_config`, checked before the engine starts."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from p2pkv.blocks import Tenant
from p2pkv.config import nearest
from p2pkv.connectors.tenants import tenant_of
from p2pkv.errors import ConfigError

Seconds = Annotated[float, Meta(gt=0, le=600)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`kv_connector_extra_config` of a `P2pkvConnector`. Times are seconds."""

    socket: str = ""
    """Unix socket of this machine's daemon; empty takes `P2PKV_NODE_SOCKET` or the default place."""

    weights_id: str = ""
    """Which weights, the same on every node and for no others. Empty: digest of the files of a local model folder, which
    every process reads once (1.5 GB a second), or the commit, if the model comes from a hub at one."""

    weights_epoch: str = "0"
    """Counts changes of the weights in place."""

    tenant: str = ""
    """Who may share, with those who have the same name and secret. Never taken from a request."""

    tenant_secret_file: str = ""
    """File with the tenant's secret. Not the secret itself: a command line is no place for one."""

    fetch_timeout_s: Seconds = 5.0
    """Longest a request may wait for peers before the engine computes it. It waits in the queue; others go on."""

    fetches: Annotated[int, Meta(ge=1, le=64)] = 4
    """Requests whose blocks are fetched at the same time, each by a thread with a connection to the daemon."""

    waiting_max: Annotated[int, Meta(ge=1, le=65536)] = 256
    """Requests that may wait for a fetch to begin; those beyond are computed at once."""

    prefill_block_s: Annotated[float, Meta(ge=-1, le=600)] = -1.0
    """What computing one block costs this engine: a fetch that would take longer is not begun. -1 measures it, 0 always
    fetches."""

    save_buffer_bytes: Annotated[int, Meta(ge=2**20, le=2**40)] = 2**28
    """Memory for blocks that were copied out of the engine's pages and wait to be published. When it is full, blocks are
    not shared, and counted."""

    save_generated: bool = True
    """Whether blocks of generated tokens are shared as well as those of prompts."""

    def tenant_identity(self) -> Tenant:
        """Return who shares.

        Raises:
            ConfigError: the file with the secret cannot be read, is empty, or belongs to no name.
        """
        return tenant_of(self.tenant, self.tenant_secret_file)


S = TypeVar("S", bound=msgspec.Struct)


def checked(kind: type[S], extra_config: Mapping[str, Any] | None, *, where: str) -> S:
    """Check what a person said at `where`.

    Raises:
        ConfigError: a name is unknown or a value is not what it must be.
    """
    known = [field.name for field in msgspec.structs.fields(kind)]
    given = dict(extra_config or {})
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown setting in {where}: {name}", hint=nearest(name, known))
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def settings_of(extra_config: Mapping[str, Any]) -> Settings:
    """Check `kv_connector_extra_config`.

    Raises:
        ConfigError: a name is unknown or a value is not what it must be.
    """
    return checked(Settings, extra_config, where="kv_connector_extra_config")
