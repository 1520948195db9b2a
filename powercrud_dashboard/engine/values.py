"""Values of any kind as plain data, which a JSON column stores and the pages show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils.functional import Promise

from powercrud_dashboard.text import CUT_MARK, LONG, MAX_DEPTH, MESSAGE, SHORT, clean_text, describe

#: Larger numbers are described, as Python refuses to read very long ones back.
_MAX_BITS = 1_024

_ENCODER = DjangoJSONEncoder()


def to_json(value: Any) -> Any:
    """Return ``value`` in a form that every JSON column takes.

    Plain data is unchanged. Collections and dataclasses keep their structure, so that the pages find the names of
    what is secret in them; any other object is described. What is too deep or too much is cut.
    """
    return _Plain().of(value, MAX_DEPTH)


class _Plain:
    """One value, which may take so much room."""

    def __init__(self) -> None:
        self._room = LONG

    def of(self, value: Any, depth: int) -> Any:
        self._room -= 1
        try:
            return self._kept(value, depth)
        except (Exception, SystemExit):
            # Other people's classes. A lazy object fails already when its class is asked for.
            return self._described(value)

    def _kept(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str | Promise):
            return self._text(clean_text(value, LONG))
        if isinstance(value, int) and value.bit_length() <= _MAX_BITS:
            return int.__int__(value)
        if isinstance(value, float) and math.isfinite(value):
            return float.__float__(value)
        return self._collection(value, depth)

    def _collection(self, value: Any, depth: int) -> Any:
        if isinstance(value, models.QuerySet):
            # Its description would execute the query.
            return f"<QuerySet of {value.model._meta.label}>"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            shown = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
            return self._dict({"__class__": type(value).__qualname__, **shown}, depth)
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            return self._dict(value._asdict(), depth)
        if isinstance(value, Mapping):
            return self._dict(value, depth)
        if isinstance(value, list | tuple):
            return self._list(value, depth)
        if isinstance(value, set | frozenset):
            return sorted(self._list(value, depth), key=str)
        return self._described(value)

    def _dict(self, value: Mapping[Any, Any], depth: int) -> Any:
        if not depth:
            return CUT_MARK.strip()
        kept: dict[str, Any] = {}
        for key, item in value.items():
            if self._room <= 0:
                kept["…"] = CUT_MARK.strip()
                break
            kept[self._text(clean_text(key, SHORT))] = self.of(item, depth - 1)
        return kept

    def _list(self, value: Iterable[Any], depth: int) -> Any:
        if not depth:
            return CUT_MARK.strip()
        kept: list[Any] = []
        for item in value:
            if self._room <= 0:
                kept.append(CUT_MARK.strip())
                break
            kept.append(self.of(item, depth - 1))
        return kept

    def _described(self, value: Any) -> str:
        try:
            text = _ENCODER.default(value)
        except (Exception, SystemExit):
            # Not a date or the like.
            text = describe(value, MESSAGE)
        return self._text(text)

    def _text(self, text: str) -> str:
        if len(text) > self._room:
            text = clean_text(text, MESSAGE)
        self._room -= len(text)
        return text
