"""How replicas are kept together: a class per sync mode, a reducer per compression.

Names and bytes are those of :mod:`autopar.sync`; this package sends them.
"""
