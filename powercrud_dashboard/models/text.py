from __future__ import annotations

#: Marks the place where a text was cut.
CUT_MARK = " … (cut)"

SHORT = 255
MESSAGE = 1_000
LONG = 100_000


def clean_text(value: object, limit: int) -> str:
    """Return ``value`` as text that every database takes, of at most ``limit`` characters.

    NUL characters and halves of surrogate pairs are replaced.
    """
    text = str(value).replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= limit:
        return text
    return text[: limit - len(CUT_MARK)] + CUT_MARK
