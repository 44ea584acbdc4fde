"""Pure compilers: what a host may see of desired state -> the entries of every table. No I/O, no clock, no logger."""

from headrace.stages.compile import compile_tables
from headrace.stages.view import Device, Index, Table, Tables, View

__all__ = ["Device", "Index", "Table", "Tables", "View", "compile_tables"]
