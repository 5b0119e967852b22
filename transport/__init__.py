"""How agents talk: control messages, framing, and the adapters that move block bytes."""

if __name__ != "p2pkv.transport":  # reached as a bare top-level name: there would be two copies of every class
    raise ImportError("import p2pkv.transport, not transport")
