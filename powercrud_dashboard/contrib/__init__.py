"""Bridges to other packages, each importable only with its own."""
