"""Emulated hosts on one Linux machine: network namespaces, shaped links, CPU quotas.

Plans can then be measured on slow, fast, mixed and uneven networks without a cluster. What is
emulated is rate and CPU share; latency is that of the machine.
"""
