"""What callers pass, in a form that every database stores. What has none is refused before anything is written."""

from __future__ import annotations

import math
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone
from django.utils.functional import Promise

from powercrud_dashboard.text import SHORT, clean_text, is_storable

#: The length of the columns for names, in django-q2's tables and in ours.
NAME_LENGTH = 100

#: django-q2's time limit of a task that has none.
NO_LIMIT = -1

#: The largest time limit that the operating system takes, and the largest value of an integer column.
MAX_INTEGER = 2**31 - 1

#: Values of these types can't be changed.
_UNCHANGEABLE = frozenset((type(None), bool, int, float, str, bytes, date, datetime, timedelta, Decimal, uuid.UUID))


def kept_arguments(message: Mapping[str, Any]) -> bytes | None:
    """Return the arguments of a task that is about to run, pickled, as its function may change what it gets.

    None if it can't change them, or they can't be pickled.
    """
    try:
        values = (*message["args"], *message["kwargs"].values())
        if _UNCHANGEABLE.issuperset(map(type, values)):
            return None
        return pickle.dumps((message["args"], message["kwargs"]), pickle.HIGHEST_PROTOCOL)
    except (Exception, SystemExit):
        # Other people's objects.
        return None


def with_kept_arguments(message: dict[str, Any], kept: bytes | None) -> dict[str, Any]:
    """Return the message of a task with the arguments that :func:`kept_arguments` has returned for it."""
    if kept is None:
        return message
    try:
        args, kwargs = pickle.loads(kept)
    except (Exception, SystemExit):
        return message
    return {**message, "args": args, "kwargs": kwargs}


def as_moment(value: datetime | None) -> datetime | None:
    """Return a time as it is stored.

    Raises:
        TypeError: if it is no ``datetime``.
        ValueError: if it has no time zone, and the project's times have one, or the reverse.
    """
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise TypeError(f"run_after is a {type(value).__name__}; use a datetime.")
    if timezone.is_aware(value) != settings.USE_TZ:
        needed = "a time zone, as USE_TZ is on" if settings.USE_TZ else "no time zone, as USE_TZ is off"
        raise ValueError(f"run_after is {value}; it needs {needed}.")
    return value


def as_name(what: str, value: Any) -> str:
    """Return a name as text; "" for None.

    Raises:
        TypeError: if it is neither a text, a UUID nor a whole number.
        ValueError: if it does not fit into the column, or has characters that no database stores.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID | Promise):
        raise TypeError(f"{what} is a {type(value).__name__}; use a text.")
    name = str.__str__(value) if isinstance(value, str) else str(value)
    if len(name) > NAME_LENGTH or not is_storable(name):
        shown = clean_text(name, NAME_LENGTH)
        raise ValueError(
            f"{what} is {shown!r}; use at most {NAME_LENGTH} characters, and neither NUL nor half of a surrogate pair."
        )
    return name


def as_time_limit(value: Any) -> int | None:
    """Return a time limit in whole seconds, rounded up; None for the cluster's own.

    Raises:
        TypeError: if it is neither a number nor a ``timedelta``.
        ValueError: if it is not a possible time limit.
    """
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds == NO_LIMIT:
        return NO_LIMIT
    return _whole_number("timeout", seconds, least=1, meant="seconds, -1 for no limit")


def as_count(what: str, value: Any) -> int | None:
    """Return a number of things, or None.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not a possible number of things.
    """
    return None if value is None else _whole_number(what, value, least=0, meant="a whole number")


def _whole_number(what: str, value: Any, *, least: int, meant: str) -> int:
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number: int = math.ceil(value)
    except TypeError:
        raise TypeError(f"{what} is a {type(value).__name__}; use {meant}.") from None
    except (ValueError, ArithmeticError):
        # Not a number, or infinite.
        number = least - 1
    if not least <= number <= MAX_INTEGER:
        raise ValueError(f"{what} is {clean_text(value, SHORT)}; use {meant}, from {least} to {MAX_INTEGER}.")
    return number


def as_person(user: Any) -> Any:
    """Return who does something: a saved user, a text for somebody else, or None for nobody.

    Args:
        user: a user, a user's key, or a text. Visitors who are not logged in are nobody.
    """
    if user is None or getattr(user, "is_anonymous", False) is True:
        return None
    model: Any = get_user_model()
    if isinstance(user, model):
        return user if user.pk is not None else clean_text(user, SHORT)
    if isinstance(user, models.Model):
        return clean_text(user, SHORT)
    # Some authentication backends have users that are no rows, with the key of one.
    key = getattr(user, "pk", user)
    found = None
    if isinstance(key, str | int | uuid.UUID) and not isinstance(key, bool):
        try:
            found = model._default_manager.filter(pk=clean_text(key, SHORT)).first()
        except (TypeError, ValueError, ValidationError):
            # It can't be a user's key.
            found = None
    return found if found is not None else clean_text(user, SHORT)


@dataclass(frozen=True)
class QueueOptions:
    """The options of a launch that are django-q2's as well."""

    task_name: str
    group: str
    cluster: str
    timeout: int | None
    sync: bool
    broker: Any
    #: Those that are django-q2's only.
    others: dict[str, Any]

    @classmethod
    def of(cls, q_options: Mapping[str, Any] | None, **given: Any) -> QueueOptions:
        """Return the options that were given by themselves, and those of ``q_options`` that were not.

        Raises:
            TypeError, ValueError: if one has no possible value.
        """
        by_themselves = {
            name: value
            for name, value in given.items()
            if value is not None and not (isinstance(value, str) and not value)
        }
        options = {**(q_options or {}), **by_themselves}
        return cls(
            task_name=as_name("task_key", options.pop("task_name", None)),
            group=as_name("group", options.pop("group", None)),
            cluster=as_name("cluster", options.pop("cluster", None)),
            timeout=as_time_limit(options.pop("timeout", None)),
            sync=bool(options.pop("sync", False)),
            broker=options.pop("broker", None),
            others=options,
        )
