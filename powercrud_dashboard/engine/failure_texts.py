"""How django-q2 tells that a task has ended, and its text of a failure: the error's, a colon, and the traceback."""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, NamedTuple

from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models import FailureReason
from powercrud_dashboard.text import CUT_MARK, LONG, clean_text, error_text

_RETURNED_FALSE = _("The task has returned False, by which django-powercrud's tasks say that they have failed.")

#: Functions of django-powercrud that return False instead of raising an error.
_POWERCRUD_TASKS = "powercrud.tasks."
#: What a worker raises in a task that was cancelled.
CANCELLED = "powercrud_dashboard.worker.observe.PlainTaskCancelled"
_TIMEOUT = "django_q.exceptions.TimeoutException"

_BETWEEN = re.compile(r" : (?=(?:  \+ Exception Group )?Traceback\b)")
#: Places that are tried: an error's text may be such a text itself.
_TRIES = 20
#: Characters by which an error's text is found again in its traceback, as patterns of long texts take long.
_COMPARED = 1_000
#: Characters of a text that is read as it is, and of an error's text in a longer one.
_READ_WHOLE, _READ_OF_ERROR = 5 * LONG, LONG // 2
#: What Python puts before the lines of an exception group. Those of the errors in it have more.
_OF_GROUP = re.compile(r"^  [|+] ", re.MULTILINE)
_HEADER = re.compile(r"^(?:Exception Group )?Traceback\b.*\n", re.MULTILINE)
_CLASS = r"([^\W\d][\w.<>]*)"
#: The first line after the calls, which are indented.
_ENDING = re.compile(rf"^{_CLASS}: (.+)$", re.MULTILINE)


class FailureText(NamedTuple):
    error: str
    #: The dotted path of the class; "" if it can't be told for certain.
    exception_class: str
    traceback: str

    @classmethod
    def of(cls, text: str) -> FailureText:
        """Return what the text tells. One of another form is an error of an unknown class.

        Of a very long one parts are left out.
        """
        text = shortened(text)
        first = None
        for between in islice(_BETWEEN.finditer(text), _TRIES):
            error, traceback = text[: between.start()], text[between.end() :]
            if kind := _class_in(_OF_GROUP.sub("", traceback), error):
                return cls(error, kind if "." in kind else f"builtins.{kind}", traceback)
            first = first or cls(error, "", traceback)
        return first or cls(text, "", text)


def shortened(text: str) -> str:
    """Return a text of a failure without the larger part of an error's text and of a traceback that are very long."""
    if len(text) <= _READ_WHOLE:
        return text
    between = _BETWEEN.search(text)
    if between is None:
        return _cut(text, LONG)
    error, traceback = text[: between.start()], text[between.end() :]
    if len(error) > _READ_OF_ERROR:
        whole, error = error, _cut(error, _READ_OF_ERROR)
        traceback = traceback.replace(whole, error)
    if len(traceback) > 2 * LONG:
        traceback = _cut(traceback, LONG) + "\n" + traceback[-LONG:]
    return f"{error}{between[0]}{traceback}"


def _cut(text: str, length: int) -> str:
    return text[: length - len(CUT_MARK)] + CUT_MARK


def _class_in(traceback: str, error: str) -> str:
    """Return the class of the error that the traceback ends with; "" if that is another one."""
    last_header = max((header.end() for header in _HEADER.finditer(traceback)), default=0)
    start = re.escape(f": {error[:_COMPARED]}") if error else ""
    ending = re.compile(rf"^{_CLASS}{start}{'' if len(error) > _COMPARED else '$'}", re.MULTILINE)
    if found := list(ending.finditer(traceback)):
        # Before it are errors that led to this one, and after it its notes. The text may contain a header itself.
        return next((match for match in found if match.start() >= last_header), found[-1])[1]
    # Python adds a proposal to some texts, and leaves out the place of a syntax error.
    match = _ENDING.search(traceback, last_header)
    is_of_error = match is not None and (match[2].startswith(f"{error}. ") or error.startswith(f"{match[2]} ("))
    return match[1] if match is not None and is_of_error else ""


# What is told of an ended task


def tells_of_failure(func: str, result: Any) -> bool:
    """Return whether a function has returned that it has failed, as those of django-powercrud do."""
    return result is False and func.startswith(_POWERCRUD_TASKS)


def outcome(func: str, success: bool, result: Any) -> tuple[str, dict[str, Any]]:
    """Return how a task has ended, as a lifecycle event with its own facts."""
    if success:
        if tells_of_failure(func, result):
            return "fail", _failure(error_text(_RETURNED_FALSE, LONG))
        return "complete", {"result": result}
    text = result if isinstance(result, str) else clean_text(result, LONG)
    error, kind, traceback = FailureText.of(text)
    if kind == CANCELLED:
        return "cancel", {}
    reason = FailureReason.TIMEOUT if kind == _TIMEOUT else FailureReason.ERROR
    return "fail", _failure(error, exception_class=kind, traceback=traceback, reason=reason)


def _failure(
    error: str, *, exception_class: str = "", traceback: str = "", reason: FailureReason = FailureReason.ERROR
) -> dict[str, Any]:
    facts = {"exception_class": exception_class, "traceback": traceback, "reason": reason.value}
    return {"error": error, "result": error, **facts}
