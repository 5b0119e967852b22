"""The entry point `vllm.general_plugins`: makes the connector's name known to vLLM, in every one of its processes.

Nothing is imported at the top, so that looking at entry points costs nothing; the connector itself is imported by vLLM
when a configuration names it.
"""


def register() -> None:
    """Tell vLLM where `P2pkvConnector` is. vLLM may call this more than once in a process."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if "P2pkvConnector" not in KVConnectorFactory._registry:  # noqa: SLF001 - it raises on a second time, and has no question
        KVConnectorFactory.register_connector("P2pkvConnector", "p2pkv.connectors.vllm.connector", "P2pkvConnector")
