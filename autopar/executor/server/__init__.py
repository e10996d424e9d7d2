"""The parameter server: sharded weights behind sockets that every worker pushes to and pulls from.

``protocol`` frames, ``connection`` and ``service`` the server's end, ``core``, ``disciplines`` and
``shard`` what it does with gradients, ``client`` the worker's end. See docs/parameter-server.md.
"""
