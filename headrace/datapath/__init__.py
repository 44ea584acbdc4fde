"""Drivers that make reality equal to the tables."""
