"""Who holds what: keys of token blocks, Bloom summaries of a node's holdings, longest-prefix matching."""

if __name__ != "p2pkv.index":  # reached as a bare top-level name: there would be two copies of every class
    raise ImportError("import p2pkv.index, not index")
