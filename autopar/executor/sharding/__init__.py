"""Sharded data parallelism: what ``dp_shard`` ranks share out, by torch's FSDP2.

One mechanism serves every ZeRO stage; the stages differ in when FSDP2 gathers and scatters, so
that the traffic is what :mod:`autopar.cost.communication.sync` prices:

==== ============================================ ===========================================
zero weights                                      gradients
==== ============================================ ===========================================
1    gathered once a step, kept to its end        whole until the last backward, then scattered
2    gathered once a step, kept to its end        scattered in every backward
3    gathered in every forward and every backward scattered in every backward
==== ============================================ ===========================================

Weights of no single unit are kept from forward to backward in a plan without a pipeline, where the
one follows the other at once.

With replicas of the shards (``dp_replicate`` > 1) the shards of gradients are averaged over them
once a step. Optimizer state is sharded in all three: the optimizer sees the shards only.
"""
