"""Texts that are stored: cleaned, so that every database takes them, and in one language, whoever caused them."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, ClassVar

from django.conf import settings
from django.utils import translation
from django.utils.functional import cached_property, lazy
from django.utils.translation import gettext

#: Marks the place where a text was cut.
CUT_MARK = " … (cut)"

SHORT = 255
MESSAGE = 1_000
LONG = 100_000

#: How deeply lists and dicts are nested in values that are kept for display. Python's stack must do for reading them.
MAX_DEPTH = 50


def clean_text(value: object, limit: int) -> str:
    """Return ``value`` as text that every database stores, of at most ``limit`` characters.

    Characters that no database stores are replaced. Other objects than texts, lazy translations among them, are in the
    site's own language (``LANGUAGE_CODE``), as the language of the person who happens to cause it says nothing to
    those who read it.
    """
    return _cut(value if type(value) is str else _printed(value, str, settings.LANGUAGE_CODE), limit)


def describe(value: object, limit: int) -> str:
    """Return the ``repr`` of ``value`` in the same way."""
    return _cut(_printed(value, repr, settings.LANGUAGE_CODE), limit)


def error_text(error: object, limit: int) -> str:
    """Return the text of an error in the same way, but without any translation.

    So errors of one kind are alike, and the pages translate those of this package.
    """
    return _cut(_printed(error, str, None), limit)


def error_summary(error: BaseException, limit: int = MESSAGE) -> str:
    """Return an error's class and text in one line."""
    return _cut(f"{type(error).__name__}: {error_text(error, limit)}", limit)


def traceback_text(error: BaseException, where: TracebackType | None) -> str:
    """Return the traceback of an error, from ``where`` on, as text that every database stores."""

    def formatted(error: Any) -> str:
        return "".join(traceback.format_exception(type(error), error, where))

    return _cut(_printed(error, formatted, None), LONG)


def storable(text: str) -> str:
    """Return the text with what no database stores replaced: NUL characters and halves of surrogate pairs."""
    if text.isascii():
        return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


def is_storable(text: str) -> bool:
    """Return whether every database stores the text as it is."""
    return storable(text) == text


def is_printable(value: object) -> bool:
    """Return whether ``str(value)`` works."""
    try:
        str(value)
    except Exception:
        return False
    return True


def is_nested(value: Any, depth: int) -> bool:
    """Return whether lists and dicts in plain data are nested more deeply than this."""
    level = [value] if isinstance(value, dict | list) else []
    for __ in range(depth):
        if not level:
            return False
        values = (item.values() if isinstance(item, dict) else item for item in level)
        level = [inner for items in values for inner in items if isinstance(inner, dict | list)]
    return bool(level)


def cut_nested(value: Any, depth: int) -> Any:
    """Return the value with its lists and dicts replaced by a mark below this depth."""
    if not isinstance(value, dict | list | tuple):
        return value
    if not depth:
        return CUT_MARK.strip()
    if isinstance(value, dict):
        return {name: cut_nested(item, depth - 1) for name, item in value.items()}
    return [cut_nested(item, depth - 1) for item in value]


#: Stands in a pattern for a part that varies.
GAP = "…"

#: Lines that tell more about the error in the others: PostgreSQL's, SQLAlchemy's, and what is indented.
_DETAIL = re.compile(
    r"(?:DETAIL|HINT|CONTEXT|QUERY|STATEMENT|WHERE|LOCATION|LINE \d+):|\^|\[(?:SQL|parameters): |\(Background on|\s"
)
#: The text of an exception inside of another's: ``NewConnectionError('...')``, ``SSLError(1, "...")``.
_NESTED_ERROR = re.compile(
    r"""
    \b[A-Z]\w*(?:Error|Exception|Warning|Timeout|Disconnected|Refused|Closed|Failed|Failure|Read)
    \((?:-?\d+,\ ?)?
    (?P<quote>['"])(?P<text>(?:(?!(?P=quote)\)).)*)(?P=quote)\)
    """,
    re.VERBOSE,
)
#: The first of several arguments of an exception: ``('Connection aborted.', ...)``.
_FIRST_ARGUMENT = re.compile(r"""^\((['"])(?P<text>[^'"]*)\1, """)

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_TIME = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?(?:\ ?(?:Z|UTC|GMT|[AP]M|[+-]\d\d:?\d\d)(?!\w))?"
#: Endings that tell the name of a host, or of a file, from that of a column or an attribute.
_TOP_LEVEL = "com|org|net|edu|gov|io|dev|cloud|example|test|invalid|local|internal|intern|lan|corp|de|at|ch|uk|fr|eu"
_FILE_TYPE = (
    "csv|tsv|txt|pdf|xlsx?|docx?|pptx?|od[ts]|json|xml|ya?ml|zip|gz|tgz|bz2|tar|png|jpe?g|gif|svg|webp|html?|py|log|sql|"
    "sqlite3?|bak|tmp|parquet|ini|cfg|conf|toml|sock|pem|crt|p12|mp[34]|ics|eml"
)

#: The parts in which two errors of the same kind differ. The first ones that are listed here do not.
#: Repetitions are limited, so that no text takes long.
_VARYING = re.compile(
    rf"""
      # Names in the schema of a database, and the classes of objects.
      (?P<kept>
          \b(?:constraint|relation|column|table|index|sequence|trigger|function|schema|type|role)\ ["“][^"”]*["”]
        | \bconstraint\ failed:\ [\w.,\ ]+
      )
    | (?P<object><[A-Za-z_][\w.]*)(?:[:(\ ][^<>]*)?>
      # Quoted values. An apostrophe inside of a word is no quotation mark.
    | (?<!\w)b?'(?:[^'\\]|\\.|'(?=\w))*'(?!\w) | (?<!\w)b?"(?:[^"\\]|\\.|"(?=\w))*"(?!\w)
    | “[^”]*” | „[^“”]*[“”] | «[^»]*» | (?<!\w)`[^`']*[`'](?!\w)
      # Addresses and ids.
    | \b[A-Za-z][A-Za-z0-9+.-]*://[^\s'"<>)]+
    | (?<=\burl:\ )[^\s'"<>)]+
    | [\w.+-]{{1,64}}@[\w-]+(?:\.[\w-]+)*
    | \b[0-9A-Fa-f]{{8}}-(?:[0-9A-Fa-f]{{4}}-){{3}}[0-9A-Fa-f]{{12}}\b
    | \b0x[0-9A-Fa-f]+\b
    | \b(?=[0-9A-Fa-f-]*\d)[0-9A-Fa-f]{{8,}}(?:-[0-9A-Fa-f]{{4,}})*\b
    | \b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{{7,}}\b
      # Dates.
    | (?:\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+)?
      \b(?:\d{{1,2}}[\ -]{_MONTH}[\ -]\d{{2,4}}|{_MONTH}\s+\d{{1,2}}(?:,?\s+\d{{4}})?)(?!\w)(?:[,\ T]+{_TIME})?
    | \b\d{{4}}-\d\d-\d\d(?:[T\ ]{_TIME})?(?!\w)
      # Hosts.
    | \[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\](?::\d+)?
    | (?<![\w:])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{1,4}}(?![\w:])
    | \b\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?:[:/]\d+)?\b
    | \b(?:
          localhost | [A-Za-z]{{1,62}}\d+
        | [A-Za-z][\w-]{{0,62}}(?:\.[\w-]{{1,63}}){{1,9}} | [A-Za-z]\w{{0,62}}-[\w-]{{1,63}}
      ):\d{{1,5}}\b
    | \b(?:[a-z0-9](?:[\w-]{{0,62}}[a-z0-9])?\.){{1,9}}(?:{_TOP_LEVEL})\b(?![.\w(])
    | (?<=\bhost\ )(?=[\w-]*[\d-])[A-Za-z][\w-]*
      # Paths and names of files, with the line.
    | (?<!\w)[A-Za-z]:\\[^\s'"<>|]* | \\\\[\w.$-]+\\[^\s'"<>|]*
    | (?<![\w./])~?/[\w.+@%-]+(?:/[\w.+@%-]*)*(?:\?[^\s'")]*)?
    | [\w.+-]{{0,100}}(?:/[\w.+-]+){{2,}}
    | (?<![\w.])\w[\w.+-]{{0,100}}\.(?:{_FILE_TYPE})\b(?::\d+)? | \b\w+\.c:\d+
      # Words that are mostly numbers, and numbers.
    | \b(?=\w*[A-Za-z])(?=\w*\d\w*\d\w*\d)\w{{7,}}\b
    | (?:(?<![\w.])[-+])?(?<![A-Za-z_])\d+(?:[.,:]\d+)*%?
    """,
    re.VERBOSE,
)
#: Gaps with nothing but punctuation between them.
_GAPS = re.compile(rf"{GAP}(?:[\s,;:/|-]+{GAP})+")


def message_pattern(kind: str, message: str, limit: int) -> str:
    """Return the pattern of an error: the short name of its class, and its last line without the parts that vary.

    Lines with details, such as those of PostgreSQL, are left out. Of several messages in a list or a dict, each kind
    is named once.
    """
    patterns = dict.fromkeys(_without_varying(text) for text in _messages_in(message))
    last = "; ".join(filter(None, patterns))
    name = kind.rpartition(".")[2]
    if name and not last.startswith(name):
        last = f"{name}: {last}" if last else name
    # Without blanks at its end, which a filter of the task list takes away.
    return clean_text(last, limit).strip()


def _messages_in(message: str) -> list[str]:
    """Return the messages that an error's text is made of, as that of Django's ``ValidationError``."""
    text = message.strip()
    if text[:1] in ("[", "{", "(") and len(text) <= LONG:
        try:
            # The errors of several of the standard library's modules are the ``repr`` of their arguments.
            value = ast.literal_eval(text)
            # A very long number can't be printed.
            return _texts_of(value) if value and not is_nested(value, MAX_DEPTH) else [text]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    lines = [line for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not _DETAIL.match(line)] or lines
    return [telling[-1].strip()] if telling else []


def _texts_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}: {text}" for name, item in value.items() for text in _texts_of(item)]
    if isinstance(value, list | set | frozenset):
        return [text for item in value for text in _texts_of(item)]
    if isinstance(value, tuple):
        return [" ".join(text for item in value for text in _texts_of(item))]
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value)]


def _without_varying(text: str) -> str:
    text = _FIRST_ARGUMENT.sub(r"\g<text> ", text[:MESSAGE])
    text = _NESTED_ERROR.sub(r"\g<text>", text)
    return _GAPS.sub(GAP, _VARYING.sub(_gap, text))


def _gap(part: re.Match[str]) -> str:
    if part["kept"]:
        return part["kept"]
    return f"{part['object']} {GAP}>" if part["object"] else GAP


# Texts with values


def _formatted(text: object, facts: dict[str, object]) -> str:
    return str(text) % facts


_lazily_formatted = lazy(_formatted, str)


def lazy_text(text: object, **facts: object) -> str:
    """Return a lazy translation with these facts in it.

    An error is printed for the person who caused it, in that person's language, and again for its record, which is
    read by others: each time its text is made anew.
    """
    lazily: str = _lazily_formatted(text, facts)
    return lazily


class KeptText:
    """A text of this package with values in it that is kept, and found again by :func:`translated`.

    It is kept without translation, as one column is read in many languages. Those who read it have it in their own.

    Args:
        text: a lazy translation with named placeholders, or a function that returns it for the number ``count``.
        inner: names of the values that are kept texts themselves, or errors with such a text.
    """

    _all: ClassVar[list[KeptText]] = []

    def __init__(self, text: object, *, inner: Collection[str] = ()) -> None:
        self._text = text
        self._inner = inner
        self._all.append(self)

    def __call__(self, **facts: Any) -> str:
        """Return the text with these values, as a lazy translation."""
        return lazy_text(self._form(facts.get("count", 1)), **facts)

    def _form(self, count: int) -> Any:
        return self._text(count) if callable(self._text) else self._text

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        with translation.override(None):
            forms = dict.fromkeys(str(self._form(count)) for count in (1, 2))
        # The pattern of an error has lost its quotation marks.
        patterns = [re.sub("([“”])", r"\1?", _PLACEHOLDER.sub(_group, re.escape(form))) for form in forms]
        return [re.compile(pattern, re.DOTALL) for pattern in patterns]

    @classmethod
    def translations(cls, text: str) -> Iterator[str]:
        """Yield the translation of a kept text by each of those that it can be."""
        for known in cls._all:
            for pattern in known._patterns:
                if (match := pattern.fullmatch(text)) is not None:
                    yield known._translated(match.groupdict())

    def _translated(self, values: dict[str, Any]) -> str:
        facts = {name: _translated_inner(value) if name in self._inner else value for name, value in values.items()}
        if "count" in facts:
            facts["count"] = int(facts["count"])
        return str(self(**facts))


#: The placeholders of a text, as re.escape() leaves them.
_PLACEHOLDER = re.compile(r"%\\\((\w+)\\\)([sd])")


def _group(placeholder: re.Match[str]) -> str:
    name, kind = placeholder.groups()
    return rf"(?P<{name}>\d+)" if kind == "d" else f"(?P<{name}>.*?)"


def _translated_inner(text: str) -> str:
    parts = [next(KeptText.translations(part), None) for part in text.split(", ")]
    return translated(text) if None in parts else ", ".join(filter(None, parts))


def translated(text: str) -> str:
    """Return a text that is kept without translation in the active language, if it is known there."""
    if not text or (found := gettext(text)) != text:
        return found if text else ""
    if len(text) > MESSAGE:
        # Not one of this package.
        return text
    for found in KeptText.translations(text):
        return found
    kind, colon, rest = text.partition(": ")
    # As error_summary() makes it.
    return f"{kind}: {translated(rest)}" if colon and kind.isidentifier() else text


def _printed(value: object, how: Callable[[Any], str], language: str | None) -> str:
    try:
        with _language(language):
            # Other classes than str may have methods of their own.
            return str.__str__(how(value))
    except (Exception, SystemExit) as error:
        # Other people's code: an error that can't be printed must not hide that there was one.
        return f"<{type(value).__qualname__} that can't be printed: {type(error).__name__}>"


def _language(code: str | None) -> AbstractContextManager[None]:
    """Activate a language for a block, or none at all."""
    if code is not None and translation.get_language() == code:
        return nullcontext()
    active: AbstractContextManager[None] = translation.override(code)
    return active


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return storable(text)
    # Cut first, as it may be much.
    return storable(text[: limit - len(CUT_MARK)]) + CUT_MARK
