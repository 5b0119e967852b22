"""What `p2pkv bench` runs against real memory and real sockets, each figure beside its limit in the same run."""
