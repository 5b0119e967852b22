"""Looking up entries of `node.join`: the DNS, the local network, files, commands. Shells: `p2pkv.mesh.sources` decides when.

Whatever a resolver gives is somebody to ask, and nobody to trust: a node that is asked must still know the cluster, and a
made-up address costs one connection that fails.
"""
