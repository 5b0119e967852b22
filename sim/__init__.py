"""The simulator: many real nodes on a virtual clock and a faulty network, replayed from a seed."""

if __name__ != "p2pkv.sim":  # reached as a bare top-level name: there would be two copies of every class
    raise ImportError("import p2pkv.sim, not sim")
