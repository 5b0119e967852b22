"""Who shares: a name and a secret from a file, never from a request."""

from pathlib import Path

from p2pkv.blocks import Tenant
from p2pkv.errors import ConfigError


def tenant_of(name: str, secret_file: str) -> Tenant:
    """Return the tenant of an engine's configuration.

    Raises:
        ConfigError: the file with the secret cannot be read, is empty, or belongs to no name.
    """
    if not secret_file:
        return Tenant(name=name)
    if not name:
        raise ConfigError("tenant_secret_file without tenant", hint="name the tenant whose secret it is")
    try:
        secret = Path(secret_file).read_bytes().strip()
    except OSError as exc:
        raise ConfigError(f"tenant_secret_file: {exc.strerror}: {secret_file}") from exc
    if not secret:
        raise ConfigError(f"tenant_secret_file is empty: {secret_file}")
    return Tenant(name=name, secret=secret)
