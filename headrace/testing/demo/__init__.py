"""The demo: two hosts, an overlay and a firewall under a real Neutron, shown step by step, then left to play with.

``python -m headrace.testing.demo [--once]`` is what ``make demo`` runs.
"""
