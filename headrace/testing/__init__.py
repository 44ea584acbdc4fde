"""Helpers that tests and developers use: laboratories, packets, machines. Shipped, so plug-ins can test too."""
