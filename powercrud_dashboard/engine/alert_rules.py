"""``DASHBOARD_ALERTS``: when an alert is opened, and who is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeGuard
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.module_loading import import_string

from powercrud_dashboard.conf import MAX_NUMBER, app_settings
from powercrud_dashboard.models import AlertKind

Limits = Mapping[str, float]

#: The limits of each kind.
DEFAULTS: dict[str, dict[str, float]] = {
    AlertKind.FAILURE_RATE: {"share": 0.5, "minutes": 15, "at_least": 10},
    AlertKind.OLDEST_WAIT: {"seconds": 900},
    AlertKind.QUEUE_DEPTH: {"tasks": 10_000},
    AlertKind.WORKERS_LOST: {},
    AlertKind.NO_WORKERS: {},
    AlertKind.MISSED_SCHEDULE: {"seconds": 120},
}
#: What may have limits of its own, by name.
SCOPES: dict[str, tuple[str, ...]] = {
    AlertKind.FAILURE_RATE: ("functions", "queues"),
    AlertKind.OLDEST_WAIT: ("queues",),
    AlertKind.QUEUE_DEPTH: ("queues",),
    AlertKind.MISSED_SCHEDULE: ("schedules",),
}
MAX_MINUTES = 24 * 60
CHANNELS = ("mail", "webhook", "call")
#: The key of the callables that find what is wrong.
CHECKS = "checks"
WEBHOOK_KEYS = ("url", "secret", "timeout")
#: In the place of what is, or may be by a misspelt key, a secret.
HIDDEN = "..."
#: Seconds that the server of a webhook may take.
WEBHOOK_TIMEOUT = 10


class Mistake(NamedTuple):
    """A part of the setting that is not used, and what it should be."""

    key: str
    value: object
    expected: str


@dataclass(frozen=True)
class Webhook:
    url: str
    secret: str
    timeout: int = WEBHOOK_TIMEOUT


class Rules:
    """The setting, with defaults for what it does not say. Mistakes, which a check reports, count as not said."""

    def __init__(self) -> None:
        given = app_settings.DASHBOARD_ALERTS
        self._is_off = given is None
        self._given: Mapping[str, Any] = given or {}

    def limits(self, kind: str, scope: str = "", name: str = "") -> Limits | None:
        """Return the limits of a kind, or those that a name of a scope has of its own; None for no alert."""
        if self._is_off:
            return None
        given = self._given.get(kind, True)
        general = _limits(kind, given, DEFAULTS[kind])
        named = given.get(scope) if isinstance(given, Mapping) else None
        if isinstance(named, Mapping) and name in named:
            return _limits(kind, named[name], general or DEFAULTS[kind])
        return general

    def names(self, kind: str, scope: str) -> list[str]:
        """Return the names of a scope that have limits of their own."""
        given = self._given.get(kind)
        named = given.get(scope) if isinstance(given, Mapping) else None
        return list(named) if isinstance(named, Mapping) else []

    @property
    def channels(self) -> list[str]:
        """Who is told: ``mail``, ``webhook`` and dotted paths of callables."""
        return [
            *(["mail"] if self.recipients else []),
            *(["webhook"] if self.webhook else []),
            *self.callables,
        ]

    @property
    def recipients(self) -> list[str]:
        """The addresses that get mails."""
        mail = self._given.get("mail")
        if mail is True:
            # Since Django 6.0 they may be addresses alone.
            return [admin if isinstance(admin, str) else admin[1] for admin in settings.ADMINS]
        return list(mail) if _is_list_of_texts(mail) else []

    @property
    def webhook(self) -> Webhook | None:
        given = self._given.get("webhook")
        return Webhook(**given) if isinstance(given, Mapping) and not any(_webhook_mistakes(given)) else None

    @property
    def callables(self) -> list[str]:
        return self._paths("call")

    @property
    def checks(self) -> list[str]:
        """Dotted paths of callables that find what is wrong."""
        return self._paths(CHECKS)

    def _paths(self, key: str) -> list[str]:
        given = self._given.get(key)
        return [given] if isinstance(given, str) else list(given) if _is_list_of_texts(given) else []


def _limits(kind: str, given: object, defaults: Limits) -> Limits | None:
    if given is None or given is False:
        return None
    if not isinstance(given, Mapping):
        return defaults
    valid = {key: value for key, value in given.items() if key in DEFAULTS[kind] and _is_limit(key, value)}
    return {**defaults, **valid}


def _is_limit(key: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if key == "share":
        return 0 < value <= 1
    return isinstance(value, int) and 1 <= value <= (MAX_MINUTES if key == "minutes" else MAX_NUMBER)


def _is_list_of_texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


# Mistakes


def mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what is wrong in a value of the setting."""
    known = [*DEFAULTS, *CHANNELS, CHECKS]
    for key, value in given.items():
        if key in DEFAULTS:
            yield from _kind_mistakes(str(key), str(key), value, SCOPES.get(key, ()))
        elif key == "mail":
            if not (isinstance(value, bool | None) or _is_list_of_texts(value)):
                yield Mistake("mail", value, "True, for the ADMINS, or to a list of addresses")
            elif value is True and not settings.ADMINS:
                yield Mistake("mail", value, "a list of addresses, or name somebody in ADMINS")
        elif key == "webhook":
            yield from _webhook_mistakes(value) if value is not None else ()
        elif key in ("call", CHECKS):
            yield from _path_mistakes(key, value)
        else:
            yield Mistake(str(key), HIDDEN, _instead(key, known))


def _instead(key: object, known: list[str]) -> str:
    similar = get_close_matches(str(key), known, n=1)
    return f"nothing: there is no such key. Did you mean {similar[0]}?" if similar else f"one of {', '.join(known)}"


def _kind_mistakes(kind: str, place: str, given: object, scopes: tuple[str, ...]) -> Iterator[Mistake]:
    if isinstance(given, bool | None):
        return
    limits = DEFAULTS[kind]
    if not isinstance(given, Mapping):
        yield Mistake(place, given, f"True, False or a dict with some of {', '.join((*limits, *scopes))}")
        return
    for key, value in given.items():
        inner = f"{place}.{key}"
        if key in scopes:
            if not isinstance(value, Mapping):
                yield Mistake(inner, value, "a dict of limits by name")
                continue
            for name, of_name in value.items():
                yield from _kind_mistakes(kind, f"{inner}.{name}", of_name, ())
        elif key not in limits:
            yield Mistake(inner, value, _instead(key, [*limits, *scopes]))
        elif not _is_limit(key, value):
            largest = MAX_MINUTES if key == "minutes" else MAX_NUMBER
            yield Mistake(
                inner, value, "a number above 0, up to 1" if key == "share" else f"a whole number, 1 to {largest:,}"
            )


def _webhook_mistakes(given: object) -> Iterator[Mistake]:
    if not isinstance(given, Mapping):
        yield Mistake("webhook", HIDDEN, "a dict with url and secret")
        return
    for key in given:
        if key not in WEBHOOK_KEYS:
            yield Mistake(f"webhook.{key}", HIDDEN, _instead(key, list(WEBHOOK_KEYS)))
    url, secret, timeout = given.get("url"), given.get("secret"), given.get("timeout", WEBHOOK_TIMEOUT)
    if not (isinstance(url, str) and _is_address(url)):
        # A password in it is not for everybody who reads the message.
        expected = "an ASCII address that begins with http:// or https://, without a user or password"
        yield Mistake("webhook.url", HIDDEN if isinstance(url, str) and "@" in url else url, expected)
    if not (isinstance(secret, str) and secret):
        yield Mistake("webhook.secret", HIDDEN if secret else secret, "a text with which messages are signed")
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 1 <= timeout <= 60:
        yield Mistake("webhook.timeout", timeout, "a whole number of seconds, 1 to 60")


def _is_address(url: str) -> bool:
    """Return whether a webhook may have this URL."""
    try:
        parts = urlsplit(url)
        # Its number is read when it is asked for.
        _port = parts.port
    except ValueError:
        return False
    is_printable = url.isascii() and url.isprintable() and " " not in url
    return is_printable and parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def _path_mistakes(key: str, given: object) -> Iterator[Mistake]:
    if given is None:
        return
    paths = [given] if isinstance(given, str) else given
    if not _is_list_of_texts(paths):
        yield Mistake(key, given, "the dotted path of a callable, or a list of paths")
        return
    for path in paths:
        try:
            found = import_string(path)
        except Exception as error:
            # Importing runs the module, which may raise anything.
            problem = f"it can't be imported, {type(error).__name__}: {error}"
        else:
            if callable(found):
                continue
            problem = "it is not callable"
        yield Mistake(key, path, f"the dotted path of a callable ({problem})")
