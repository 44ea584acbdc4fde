"""Repeatable measurements: Headrace beside what people run today, interleaved, on this machine, in one run.

``python -m bench --help`` has the doors; documents quote only the tables that it prints.
"""
