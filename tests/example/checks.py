"""What the project's alerts look for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

#: The mailboxes that are full, as somebody would have to ask a server.
full: list[str] = []
#: Whether the server answers.
answers = [True]
#: Set once a server that was silent goes on.
goes_on = threading.Event()


def mailboxes() -> Iterator[tuple[str, str]]:
    """Yield each mailbox that is full."""
    if not answers[0]:
        raise ConnectionError("no answer")
    for name in full:
        yield name, f"The mailbox {name} is full."


def silent() -> Iterator[tuple[str, str]]:
    """Ask a server that does not answer, without a time limit."""
    goes_on.wait()
    yield "answer", "The server has answered."


def endless() -> Iterator[tuple[str, str]]:
    """Find more than anybody would read."""
    for number in count():
        yield str(number), "One more."
