"""Pure compilers: what a host may see of desired state -> the entries of every table. No I/O, no clock, no logger."""

from headrace.stages.compile import compile_parts, compile_tables
from headrace.stages.memo import Memo, Table
from headrace.stages.view import Device, Index, Parts, Tables, View

__all__ = ["Device", "Index", "Memo", "Parts", "Table", "Tables", "View", "compile_parts", "compile_tables"]
