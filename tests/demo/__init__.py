"""The demo project: an inventory of real files, the running Python's standard library."""

from __future__ import annotations
