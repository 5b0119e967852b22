"""The class vLLM loads to share what its image and audio encoders computed: `ec_connector`, beside `kv_connector`.

    vllm serve MODEL --ec-transfer-config '{"ec_connector": "P2pkvEncoderConnector", "ec_role": "ec_both",
        "ec_connector_module_path": "p2pkv.connectors.vllm.encoder_connector",
        "ec_connector_extra_config": {"weights_id": "my-model@1f3c"}}'

A request waits in the queue while its items are asked for, for `fetch_timeout_s` at most; what does not come is encoded.
"""

import logging
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
import vllm
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.client import Client
from p2pkv.config import default_socket
from p2pkv.connectors.foreign_chunks import ForeignChunks
from p2pkv.connectors.tally import Tally
from p2pkv.connectors.tenants import tenant_of
from p2pkv.connectors.vllm.chains import names_content
from p2pkv.connectors.vllm.encoder_outputs import EncoderOutputs, EncoderSaver, unpacked
from p2pkv.connectors.vllm.settings import Seconds, checked
from p2pkv.errors import ConfigError

logger = logging.getLogger(__name__)
_ANSWER_S: Final = 5.0
_WAITING_BYTES: Final = 2**28
_CLAIMS_MAX: Final = 64


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ec_connector_extra_config` of a `P2pkvEncoderConnector`."""

    weights_id: str
    """Which weights, the same on every node and for no others."""

    socket: str = ""
    """Unix socket of this machine's daemon; empty takes `P2PKV_NODE_SOCKET` or the default place."""

    tenant: str = ""
    """Who may share; see the KV connector."""

    tenant_secret_file: str = ""
    """File with the tenant's secret."""

    fetch_timeout_s: Seconds = 2.0
    """Longest a request may wait for an item before the engine encodes it."""


class Loads(ECConnectorMetadata):  # type: ignore[misc]  # vLLM has no types
    """What a step's workers put into their encoder cache."""

    def __init__(self, chunks: dict[str, bytes]) -> None:
        self.chunks = chunks


class P2pkvEncoderConnector(ECConnectorBase):  # type: ignore[misc]  # the same
    """See the module; vLLM builds it beside its scheduler and in every worker."""

    def __init__(self, vllm_config: Any, role: ECConnectorRole) -> None:
        """Read the settings.

        Raises:
            ConfigError: `ec_connector_extra_config` is not what it must be.
        """
        super().__init__(vllm_config=vllm_config, role=role)
        transfer = vllm_config.ec_transfer_config
        settings = checked(EncoderSettings, transfer.ec_connector_extra_config, where="ec_connector_extra_config")
        if not settings.weights_id:
            raise ConfigError("weights_id is empty", hint="name the weights, such as model@revision")
        layout = OpaqueLayout(
            engine="vllm encoder",
            version=vllm.__version__,
            isa=str(vllm_config.model_config.model),
            dtype="int8",
            block_tokens=1,
            rank=0,
            tp=1,
            block_bytes=1,
            segment_bytes=1,
        )
        tenant = tenant_of(settings.tenant, settings.tenant_secret_file)
        namespace = Namespace(weights_id=settings.weights_id, layout=layout, tenant=tenant)
        client = Client(
            Path(settings.socket or default_socket()),
            timeout_s=_ANSWER_S,
            staging_bytes=_WAITING_BYTES,
            name="vllm encoder",
        )
        chunks = ForeignChunks(client, namespace, timeout_s=settings.fetch_timeout_s)
        self.tally: Final = Tally(logger)
        self._outputs = self._saver = None
        if role == ECConnectorRole.SCHEDULER:
            self._outputs = EncoderOutputs(chunks, self.tally, budget_s=settings.fetch_timeout_s)
        elif vllm_config.parallel_config.rank == 0:  # all ranks have the same
            self._saver = EncoderSaver(chunks, self.tally, waiting_bytes=_WAITING_BYTES)
        self._claims: dict[str, bytes] = {}
        """What vLLM was told is here and has no place for yet. It may not go away meanwhile."""
        self._loads: dict[str, bytes] = {}

    def ensure_cache_available(self, request: Any, num_computed_tokens: int) -> bool:  # noqa: ARG002 - vLLM's
        """Say whether nothing is asked for any more that `request` could have from others."""
        if self._outputs is None or not self.is_consumer:
            return True
        return self._outputs.ask(
            feature.identifier for feature in request.mm_features if names_content(feature.identifier)
        )

    def has_cache_item(self, identifier: str) -> bool:
        """Say whether an item is here; asks for it if nothing is known, and does not wait."""
        if self._outputs is None or not self.is_consumer or not names_content(identifier):
            return False
        if identifier in self._loads or identifier in self._claims:
            return True
        if self._outputs.state(identifier) != "here" or (chunk := self._outputs.take(identifier)) is None:
            return False
        self._claims[identifier] = chunk
        return True

    def update_state_after_alloc(self, request: Any, index: int) -> None:
        """Take that vLLM has a place for an item; one that is here goes there with the next step."""
        identifier = request.mm_features[index].identifier
        if identifier in self._claims:
            self._loads[identifier] = self._claims.pop(identifier)

    def build_connector_meta(self, scheduler_output: Any) -> Loads:  # noqa: ARG002 - vLLM's
        """Return what this step's workers load."""
        loads, self._loads = self._loads, {}
        while len(self._claims) > _CLAIMS_MAX:  # of earlier steps: vLLM asks anew before it gives them a place
            del self._claims[next(iter(self._claims))]
        return Loads(loads)

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:  # noqa: ARG002 - vLLM's
        """Put what came with the step into the encoder's cache."""
        loads = self._get_connector_metadata()
        device = self._vllm_config.device_config.device
        for identifier, chunk in loads.chunks.items():
            if identifier not in encoder_cache:
                encoder_cache[identifier] = unpacked(chunk).to(device)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:  # noqa: ARG002 - vLLM's
        """Offer what the encoder has just computed."""
        if self._saver is not None and self.is_producer and names_content(mm_hash):
            self._saver.save(mm_hash, encoder_cache[mm_hash])

    def shutdown(self) -> None:
        """Let go of everything and say what happened."""
        for half in (self._outputs, self._saver):
            if half is not None:
                half.close()
        self.tally.log_total("encoder")
