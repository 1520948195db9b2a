"""What the project's alerts look for."""

from __future__ import annotations

from collections.abc import Iterator

#: The mailboxes that are full, as somebody would have to ask a server.
full: list[str] = []
#: Whether the server answers.
answers = [True]


def mailboxes() -> Iterator[tuple[str, str]]:
    """Yield each mailbox that is full."""
    if not answers[0]:
        raise ConnectionError("no answer")
    for name in full:
        yield name, f"The mailbox {name} is full."
