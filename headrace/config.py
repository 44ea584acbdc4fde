"""Configuration files: TOML into a frozen Struct, nothing unknown accepted."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from headrace.errors import InvalidInput
from headrace.strict import convert

Config = TypeVar("Config", bound=msgspec.Struct)


def load(path: str | Path, type_: type[Config]) -> Config:
    """Read a file. Raises InvalidInput naming file and key, for an unknown key also the nearest known one.

    The type says ``forbid_unknown_fields=True``, and so do the Structs in it.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: {error.strerror}; write it, after its example in packaging/") from None
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from None
    return convert(values, type_, str(path))
