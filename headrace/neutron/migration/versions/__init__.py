"""Revisions; alembic finds them by reading this directory."""
