"""What django-q2's text of a failure tells: the error, its class, and the traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from powercrud_dashboard.engine.failure_texts import FailureText


def text_of(function: Callable[[], Any]) -> tuple[Exception, str]:
    """Return the error of a function, and the text that django-q2 makes of it."""
    try:
        function()
    except Exception as error:
        return error, f"{error} : {traceback.format_exc()}"
    raise AssertionError


def fail() -> None:
    raise ValueError("first")


def fail_with_a_group() -> None:
    raise ExceptionGroup("both\nfailed", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])


def fail_with_a_group_and_a_cause() -> None:
    try:
        fail()
    except ValueError as error:
        raise ExceptionGroup("both", [OSError("one"), TypeError("two")]) from error


def fail_as_a_child() -> None:
    raise RuntimeError(f"child failed: {text_of(fail)[1]}")


def fail_with_a_traceback() -> None:
    raise RuntimeError(f"child failed:\n{text_of(fail)[1].partition(' : ')[2]}")


def fail_after_another() -> None:
    try:
        fail()
    except ValueError:
        raise LookupError("first") from None


def fail_with_notes() -> None:
    error = ValueError("first")
    error.add_note("seen:\nTypeError: first")
    raise error


def fail_with_lines() -> None:
    raise ValueError("line\nOSError: [Errno 2] x\n")


def fail_without_text() -> None:
    raise KeyError


def fail_to_compile() -> None:
    compile("a b", "x.py", "exec")


def fail_with_a_proposal() -> None:
    [].apend(1)  # type: ignore[attr-defined]


def fail_with_a_key() -> None:
    {}["a : Traceback b"]


def fail_with_an_own_class() -> None:
    class Ünï(Exception):
        pass

    raise Ünï("x")


@pytest.mark.parametrize(
    "function",
    [
        fail,
        fail_with_a_group,
        fail_with_a_group_and_a_cause,
        fail_as_a_child,
        fail_with_a_traceback,
        fail_after_another,
        fail_with_notes,
        fail_with_lines,
        fail_without_text,
        fail_to_compile,
        fail_with_a_proposal,
        fail_with_a_key,
        fail_with_an_own_class,
    ],
)
def test_the_error_and_its_class_are_told(function):
    error, text = text_of(function)
    told = FailureText.of(text)
    assert told.error == str(error)
    assert told.exception_class == f"{type(error).__module__}.{type(error).__qualname__}"
    assert told.traceback.lstrip(" +").startswith(("Traceback", "Exception Group Traceback"))


@pytest.mark.parametrize("text", ["", "killed", "no : Traceback", "no : Traceback\nValueError: yes"])
def test_what_can_not_be_told_is_left_open(text):
    assert FailureText.of(text).exception_class == ""
    assert FailureText.of(text).error == text.partition(" : Traceback")[0]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "a line\n" * 200_000], ids=["one line", "many lines"])
def test_of_an_error_with_a_very_long_text_the_class_is_told_and_a_part_of_the_text_kept(text):
    def fail_at_length() -> None:
        raise LookupError(text)

    told = FailureText.of(text_of(fail_at_length)[1])
    assert told.exception_class == "builtins.LookupError"
    assert text.startswith(told.error[:10_000])
    assert len(told.error) < 100_000
    assert "in fail_at_length" in told.traceback
    assert len(told.traceback) < 300_000
