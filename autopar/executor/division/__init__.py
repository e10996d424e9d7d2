"""How tensor, sequence, context and expert parallelism rewrite a traced graph for one rank.

Each pass turns the graph of the whole model into that of one rank: shapes become local, weights
become parts, collectives stand where the passes put them. Ops keep their order, so the ranges of a
plan's stages, recompute and shard units are translated, not planned again. Passes compose: each
reads the shapes that the one before it left.
"""
