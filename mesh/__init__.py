"""Who is in the mesh: membership by gossip, failure detection, and the ring that maps keys to owners."""

if __name__ != "p2pkv.mesh":  # reached as a bare top-level name: there would be two copies of every class
    raise ImportError("import p2pkv.mesh, not mesh")
