from __future__ import annotations

import re
from collections.abc import Callable

#: Marks the place where a text was cut.
CUT_MARK = " … (cut)"

SHORT = 255
MESSAGE = 1_000
LONG = 100_000


def clean_text(value: object, limit: int) -> str:
    """Return ``value`` as text that every database takes, of at most ``limit`` characters.

    NUL characters and halves of surrogate pairs are replaced.
    """
    return _clean(_printed(value, str), limit)


def describe(value: object, limit: int) -> str:
    """Return the ``repr`` of ``value`` in the same way."""
    return _clean(_printed(value, repr), limit)


def is_printable(value: object) -> bool:
    """Return whether ``str(value)`` works."""
    try:
        str(value)
    except Exception:
        return False
    return True


#: What differs between two errors of the same kind: quoted words, ids, numbers, paths.
_VARYING = re.compile(
    r"""
      (?<!\w)['"`“„].*?['"`”“](?!\w)
    | [\w.+-]*(?:/[\w.+-]+){2,}
    | \b(?=[0-9a-f-]*\d)[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b
    | (?<![A-Za-z_])\d+(?:[.,:]\d+)*
    """,
    re.VERBOSE,
)


def message_pattern(kind: str, message: str, limit: int) -> str:
    """Return what errors of one kind share: the class's short name and the last line without what varies."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    last = _VARYING.sub("…", lines[-1][:MESSAGE]) if lines else ""
    name = kind.rpartition(".")[2]
    if name and not last.startswith(name):
        last = f"{name}: {last}" if last else name
    return clean_text(last, limit)


def _printed(value: object, how: Callable[[object], str]) -> str:
    try:
        return how(value)
    except Exception as error:
        # The code of others: an error that can't be printed must not hide that there was one.
        return f"<{type(value).__qualname__} that can't be printed: {type(error).__name__}>"


def _clean(text: str, limit: int) -> str:
    text = text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= limit:
        return text
    return text[: limit - len(CUT_MARK)] + CUT_MARK
