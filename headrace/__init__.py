"""Headrace: SR-IOV's speed with every feature of a virtual switch."""

__version__ = "0.1.0"
