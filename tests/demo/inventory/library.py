"""The files that the demo works on, and the work."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SKIPPED_DIRECTORIES = {"__pycache__", "site-packages"}


@dataclass(frozen=True)
class Count:
    lines: int
    definitions: int


def library_files() -> Iterator[Path]:
    """Yield every file of the standard library, its test data included."""
    for directory, subdirectories, names in os.walk(LIBRARY):
        subdirectories[:] = sorted(set(subdirectories) - SKIPPED_DIRECTORIES)
        yield from (Path(directory, name) for name in sorted(names))


def checksum(path: str) -> str:
    with (LIBRARY / path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count(path: str) -> Count:
    """Count lines and defined names of a Python file.

    Raises:
        SyntaxError, ValueError: if it does not parse; the library's test data has such files.
    """
    source = (LIBRARY / path).read_bytes()
    tree = ast.parse(source, filename=path)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return Count(source.count(b"\n"), sum(isinstance(node, kinds) for node in ast.walk(tree)))
