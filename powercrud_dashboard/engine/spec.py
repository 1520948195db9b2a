"""What a task is: its function, arguments and options in one object, from the launch to the worker and to a retry."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import math
import pickle
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from django.core import signing
from django.db import models
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import calls, registry
from powercrud_dashboard.engine.policy import RetryPolicy
from powercrud_dashboard.exceptions import UnimportableCallable, UnreadableSpec
from powercrud_dashboard.text import SHORT, KeptText, clean_text, describe, error_summary

TaskFunction = Callable[..., Any]

#: The version of the text form. It is raised by a change that an older release must not ignore; a field that it may
#: ignore is simply added.
VERSION = 1

#: What a worker passes to a function that accepts it; the values are those of a check.
INJECTED = {"task_key": "", "manager_class": "", "resume_at": 0}

#: What only a function gets that names it: others hand on what they don't know.
ONLY_IF_NAMED = ("resume_at",)

_SALT = "powercrud_dashboard.task_spec"

#: Characters above which the text form is compressed.
COMPRESS_ABOVE = 4_096

#: Functions whose signatures are kept by each process, as Python takes a while to find one out.
KEPT_SIGNATURES = 500


_UNREADABLE_ARGUMENTS = KeptText(_("its arguments can't be read (%(error)s)"))
_NEWER_RELEASE = KeptText(_("it was launched by a newer release (version %(version)s of its spec)"))


@dataclass(frozen=True)
class TaskSpec:
    """One task. Use :func:`dataclasses.replace` for a task that differs in some points."""

    #: The function's dotted path.
    func: str
    #: The arguments may be secret, so that they are in no log and on no error page.
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: django-q2's own options, such as ``save`` or ``hook``.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: The name of the task that people read.
    label: str = ""
    #: What is shown as the function, where ``func`` is one that runs others.
    shown_func: str = ""
    #: The name of the person who has launched the task, for the worker's log.
    launched_by: str = ""
    #: What a worker needs to go on with the trace of the launch.
    trace: Mapping[str, str] = field(default_factory=dict)
    manager_class: str = ""
    manager_config: Mapping[str, Any] = field(default_factory=dict)
    #: The objects to lock: normalised model label -> keys as text.
    conflict_ids: Mapping[str, list[str]] = field(default_factory=dict)
    #: Rows of the same objects in the tables of further parent models, which are locked as well.
    parent_ids: Mapping[str, list[str]] = field(default_factory=dict)
    #: Objects that the task works on without locking them.
    object_ids: Mapping[str, list[str]] = field(default_factory=dict)
    #: How many objects it works on, where they are not all named.
    object_count: int | None = None
    #: The names of objects that people read: label of the object's own class -> key -> text.
    object_texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Descriptions of the objects, where their keys are not known.
    affected_objects: list[str] = field(default_factory=list)
    #: Whether the function reports the outcome of each object.
    by_object: bool = False
    #: Whether it is for only some of the objects of the task that it is a retry of.
    is_partial: bool = False
    group: str = ""
    cluster: str = ""
    #: Seconds after which the worker stops the task; None for the cluster's own limit.
    timeout: int | None = None
    unique_key: str = ""
    retry: RetryPolicy | None = None

    def __str__(self) -> str:
        return clean_text(self.shown_func or self.func, SHORT)

    def for_worker(self) -> TaskSpec:
        """Return what a worker needs to call the function; the rest is in the task's row."""
        return TaskSpec(self.func, self.args, self.kwargs, launched_by=self.launched_by, trace=self.trace)

    def to_text(self) -> str:
        """Return the text form, which :meth:`from_text` reads.

        It is JSON. Arguments that are more than plain JSON are pickled inside of it, so that the rest can be read
        even where they can't be any more.

        Raises:
            TypeError: if the arguments can't be pickled either.
        """
        state: dict[str, Any] = {"version": VERSION}
        for item in _FIELDS:
            value = getattr(self, item.name)
            if item.name not in _ARGUMENTS and value != _default_of(item):
                state[item.name] = value
        if self.retry is not None:
            state["retry"] = self.retry.to_json()
        arguments = {"args": list(self.args), "kwargs": dict(self.kwargs), "options": dict(self.options)}
        given = {name: value for name, value in arguments.items() if value}
        if is_plain_json(given):
            state["arguments"] = given
        else:
            state["pickle"] = self._pickled(given)
        return json.dumps(state, separators=(",", ":"))

    def _pickled(self, arguments: dict[str, Any]) -> str:
        try:
            return base64.b64encode(pickle.dumps(arguments)).decode()
        except Exception as error:
            raise TypeError(
                f"The arguments of {self.func} can't be sent to a worker ({error_summary(error)}). "
                "Pass plain values, such as primary keys, and look the objects up in the task."
            ) from error

    @classmethod
    def from_text(cls, text: str) -> TaskSpec:
        """Return the spec of a text form, of this version or an older one. Fields that are not known are ignored.

        The text must come from a trusted place: a queue message, whose signature django-q2 checks, or
        :meth:`from_signed`.

        Raises:
            UnreadableSpec: if its version is newer than this release, or it can't be read.
        """
        try:
            return cls._from_state(json.loads(text))
        except UnreadableSpec:
            raise
        except Exception as error:
            # Unpickling imports the classes of the arguments, which a deploy may have removed or changed.
            text = error_summary(error)
            raise UnreadableSpec(_UNREADABLE_ARGUMENTS(error=text)) from error

    @classmethod
    def _from_state(cls, state: dict[str, Any]) -> TaskSpec:
        if (version := state.get("version", 0)) > VERSION:
            raise UnreadableSpec(_NEWER_RELEASE(version=version), is_newer=True)
        known = {item.name: state[item.name] for item in _FIELDS if item.name in state}
        arguments = state.get("arguments") or {}
        if "pickle" in state:
            arguments = pickle.loads(base64.b64decode(state["pickle"]))
        known["args"] = tuple(arguments.get("args", ()))
        known["kwargs"] = arguments.get("kwargs", {})
        known["options"] = arguments.get("options", {})
        known["retry"] = RetryPolicy.from_json(state.get("retry") or {})
        return cls(**known)

    def to_signed(self) -> str:
        """Return the text form, signed with the project's secret key, for a column of the database."""
        return sign(self.to_text())

    @classmethod
    def from_signed(cls, signed: str) -> TaskSpec:
        """Return the spec of a signed text. Keys in ``SECRET_KEY_FALLBACKS`` are accepted as well.

        Raises:
            UnreadableSpec: if there is none, it was not signed by this project, or it can't be read.
        """
        if not signed:
            raise UnreadableSpec(_("its arguments were not kept"))
        try:
            text = _signer().unsign_object(signed, serializer=_TextSerializer)
        except signing.BadSignature as error:
            raise UnreadableSpec(_("its signature does not match this project's SECRET_KEY")) from error
        return cls.from_text(text)


_FIELDS = dataclasses.fields(TaskSpec)
#: Fields with a form of their own in the text.
_ARGUMENTS = ("args", "kwargs", "options", "retry")


def _default_of(item: dataclasses.Field[Any]) -> Any:
    factory = item.default_factory
    return item.default if factory is dataclasses.MISSING else factory()


class _TextSerializer:
    """Signs a text as it is."""

    def dumps(self, text: str) -> bytes:
        return text.encode()

    def loads(self, content: bytes) -> str:
        return content.decode()


def _signer() -> signing.Signer:
    return signing.Signer(salt=_SALT)


def sign(text: str) -> str:
    """Return the text, signed with the project's secret key, and compressed if it is long."""
    signed: str = _signer().sign_object(text, serializer=_TextSerializer, compress=len(text) > COMPRESS_ABOVE)
    return signed


@dataclass(frozen=True)
class TaskCall:
    """What travels through the queue in the place of the function; its text is the function's path.

    It is pickled into queue messages, which other releases read: its fields are a format, as the spec's text is.
    """

    task_name: str
    #: The text form of the spec, with the arguments.
    spec: str = field(repr=False)
    name: str
    sync: bool = False

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> Any:
        """Run the task if it is still to be run, and return its result."""
        return registry.run_task()(self)


#: Python prints no integer of more than 4,300 digits.
MAX_INTEGER_BITS = 4_096

#: Halves of surrogate pairs, which UTF-8 does not have.
_SURROGATES = re.compile("[\ud800-\udfff]")


def is_plain_json(value: object) -> bool:
    """Return whether JSON in UTF-8 gives the value back exactly as it is."""
    try:
        return _is_plain_json(value)
    except RecursionError:
        # It contains itself.
        return False


def _is_plain_json(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_plain_json(key) and _is_plain_json(item) for key, item in value.items())
    if kind is list:
        return all(map(_is_plain_json, value))
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(value.bit_length() <= MAX_INTEGER_BITS)
    if kind is str:
        return value.isascii() or not _SURROGATES.search(value)
    return value is None or kind is bool


# The function of a task


def resolve_function(func: str | TaskFunction) -> tuple[str, TaskFunction]:
    """Return the dotted path and the function itself.

    Raises:
        UnimportableCallable: if a worker, which knows only the path, would not find this function.
    """
    path = func if isinstance(func, str) else _path_of(func)
    try:
        found = pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:
        # Importing runs the module, which may raise anything; a script leaves.
        raise UnimportableCallable(path, f"importing it fails with {error_summary(error)}") from error
    if not callable(found):
        raise UnimportableCallable(path, f"it is a {type(found).__name__}, not a function")
    if not isinstance(func, str) and found != func:
        raise UnimportableCallable(path, "that path leads to a different object")
    return path, found


def _path_of(func: TaskFunction) -> str:
    module = getattr(func, "__module__", None)
    name = getattr(func, "__qualname__", None)
    if not module or not name:
        raise UnimportableCallable(describe(func, SHORT), "it has no importable name")
    path = f"{module}.{name}"
    if "<lambda>" in name:
        raise UnimportableCallable(path, "a lambda has no importable name")
    if "<locals>" in name:
        raise UnimportableCallable(path, "it is defined inside another function")
    if module == "__main__":
        raise UnimportableCallable(path, "a worker has another __main__ module")
    return path


def accepted_arguments(func: TaskFunction, available: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the ``available`` keyword arguments that the function's signature accepts.

    None for a function whose attribute ``injects_nothing`` is true.
    """
    if getattr(func, "injects_nothing", False):
        return {}
    if (signature := _signature(func)) is None:
        return {}
    parameters = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {name: value for name, value in available.items() if name not in ONLY_IF_NAMED or name in parameters}
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: value for name, value in available.items() if name in parameters and parameters[name].kind in by_keyword
    }


def argument_names(func: TaskFunction, count: int) -> list[str]:
    """Return the names that the function's signature gives to so many positional arguments, as far as it has any."""
    if (signature := _signature(func)) is None:
        return []
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return names[:count] + [parameter.name] * (count - len(names))
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[:count]


def check_arguments(path: str, func: TaskFunction, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that a call of the function with these arguments runs it.

    Raises:
        TypeError: with the message that the call would have failed with in the worker.
    """
    if calls.is_generator_function(func):
        raise TypeError(calls.generator_refusal(path))
    if (signature := _signature(func)) is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{path}(): {error}") from error


def _signature(func: TaskFunction) -> inspect.Signature | None:
    """Return the function's signature; None for built-in functions whose signature Python can't read."""
    try:
        return _kept_signature(func)
    except TypeError:
        # It can't be hashed.
        return _kept_signature.__wrapped__(func)


@lru_cache(maxsize=KEPT_SIGNATURES)
def _kept_signature(func: TaskFunction) -> inspect.Signature | None:
    try:
        return inspect.signature(func)
    except (TypeError, ValueError):
        return None


def describe_objects(objects: Iterable[Any] | None) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return a line of text for each object, and the lines of model instances by their class's label and key."""
    if objects is None:
        return [], {}
    if isinstance(objects, str | bytes | models.Model) or not isinstance(objects, Iterable):
        objects = [objects]
    lines: list[str] = []
    texts: dict[str, dict[str, str]] = {}
    for item in objects:
        lines.append(clean_text(item, SHORT))
        if isinstance(item, models.Model):
            texts.setdefault(item._meta.label_lower, {})[str(item.pk)] = lines[-1]
    return lines, texts
