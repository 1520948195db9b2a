from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.db import transaction
from django.dispatch import Signal

from powercrud_dashboard import signals
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.testapp import tasks

pytestmark = pytest.mark.django_db(transaction=True)

Heard = list[tuple[str, str, dict[str, Any]]]


@pytest.fixture
def connect() -> Iterator[Callable[..., None]]:
    """Connect receivers for the length of a test."""
    connected: list[tuple[Signal, Any, Any]] = []

    def listen(signal: Signal, receiver: Any, sender: Any = None) -> None:
        signal.connect(receiver, sender=sender, weak=False)
        connected.append((signal, receiver, sender))

    yield listen
    for signal, receiver, sender in connected:
        signal.disconnect(receiver, sender=sender)


@pytest.fixture
def heard(connect) -> Heard:
    """What was told: the name of the signal, that of the task, and the payload."""
    told: Heard = []

    def listen_to(name: str) -> None:
        def note(sender: Any, task_name: str, payload: dict[str, Any], **kwargs: Any) -> None:
            told.append((name, task_name, payload))

        connect(getattr(signals, name), note)

    for name in signals.__all__:
        if name != "task_event":
            listen_to(name)
    return told


def names_of(heard: Heard) -> list[str]:
    return [name for name, _task_name, _payload in heard]


def test_each_step_of_a_task_is_told(manager, make_projects, heard):
    (project,) = make_projects(1)
    name = manager.launch_async_task(tasks.rebuild_project, project.pk, user="anna", sync=True)
    assert names_of(heard) == [
        "task_created",
        "task_started",
        *(["task_progress"] * 3),
        "task_completed",
        "task_cleaned",
        "task_finished",
    ]
    assert {task_name for _name, task_name, _payload in heard} == {name}
    payloads = {name: payload for name, _task_name, payload in heard}
    assert payloads["task_created"]["user"] == "anna"
    assert payloads["task_started"]["attempt"] == 1
    assert payloads["task_progress"]["progress_payload"] == "Step 3/3: write"
    assert payloads["task_completed"]["status"] == "success"
    assert payloads["task_completed"]["result"]["steps"] == 3
    assert payloads["task_cleaned"]["reason"] == "complete"
    assert all("extra" in payload and "recorded" not in payload for payload in payloads.values())


def test_what_people_do_is_told(manager, heard):
    with suppress(ValueError):
        manager.launch_async_task(tasks.fail, sync=True)
    name = heard[0][1]
    assert names_of(heard) == ["task_created", "task_started", "task_failed", "task_cleaned", "task_finished"]
    assert heard[2][2]["error"] == "it broke"
    heard.clear()
    assert manager.dismiss_failure(name, user="anna")
    assert manager.reopen_failure(name)
    new = manager.retry_task(name)
    manager.pause_task(new)
    manager.resume_task(new)
    manager.cancel_task(new)
    assert names_of(heard) == [
        "task_dismissed",
        "task_reopened",
        "task_created",
        "task_retried",
        "task_paused",
        "task_resumed",
        "task_cancelled",
        "task_cleaned",
        "task_finished",
    ]
    assert heard[3][1] == name
    assert heard[3][2]["new_task_name"] == new


def test_a_cancel_by_nobody_who_is_known_has_an_actor_nevertheless(manager, heard):
    manager.remove_active_task(manager.launch_async_task(tasks.add, 1))
    told = {
        name: payload["actor"] for name, _task_name, payload in heard if name in ("task_cancelled", "task_finished")
    }
    assert told == {"task_cancelled": None, "task_finished": None}


def test_there_is_one_signal_for_all_events(manager, connect):
    told: list[str] = []
    connect(signals.task_event, lambda event, **kwargs: told.append(event))
    name = manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.claim(name, worker=None)
    manager.cancel_task(name)
    assert told == ["create", "cancel_requested"]


def test_receivers_may_choose_a_manager(connect):
    class Other(AsyncManager):
        pass

    told: list[str] = []
    connect(signals.task_created, lambda task_name, **kwargs: told.append(task_name), sender=Other)
    AsyncManager().launch_async_task(tasks.add, 1)
    assert told == []
    name = Other().launch_async_task(tasks.add, 1)
    assert told == [name]


def test_nothing_is_told_of_what_is_rolled_back(manager, heard):
    with suppress(LookupError), transaction.atomic():
        manager.launch_async_task(tasks.add, 1)
        raise LookupError
    assert heard == []
    with transaction.atomic():
        manager.launch_async_task(tasks.add, 1)
        assert heard == []
    assert names_of(heard) == ["task_created"]


def test_a_refused_launch_tells_nothing(manager, heard):
    ids = {"testapp.Project": {1}}
    manager.launch_async_task(tasks.add, 1, conflict_ids=ids)
    heard.clear()
    with pytest.raises(TaskConflict):
        manager.launch_async_task(tasks.add, 1, conflict_ids=ids)
    assert heard == []


class Broken:
    """A receiver without a name of its own."""

    def __call__(self, **kwargs: Any) -> None:
        raise LookupError("no mail server")


def broken(**kwargs: Any) -> None:
    raise LookupError("no mail server")


def leaving(**kwargs: Any) -> None:
    raise SystemExit("enough")


def test_a_receiver_that_fails_harms_nothing(manager, record_of, connect, heard, caplog):
    connect(signals.task_completed, broken)
    name = manager.launch_async_task(tasks.add, 1, sync=True)
    record = record_of(name)
    assert record.status == "success"
    assert names_of(heard)[-1] == "task_finished"
    event = record.events.get(event="hook_error")
    assert (
        event.message == "The complete receiver of tests.unit.test_signals.broken failed: LookupError: no mail server"
    )
    assert "raise LookupError" in event.payload["traceback"]
    assert any("no mail server" in entry.getMessage() and entry.exc_info for entry in caplog.records)


async def leaving_later(**kwargs: Any) -> None:
    raise SystemExit("enough")


async def wait_for_a_cancelled_one() -> None:
    waiting = asyncio.ensure_future(asyncio.sleep(3_600))
    waiting.cancel()
    await waiting


def cancelled(**kwargs: Any) -> None:
    asyncio.run(wait_for_a_cancelled_one())


async def cancelled_later(**kwargs: Any) -> None:
    await wait_for_a_cancelled_one()


@pytest.mark.parametrize(
    ("receiver", "error"),
    [
        (Broken(), "Broken failed: LookupError: no mail server"),
        (leaving, "leaving failed: RuntimeError: It has called sys.exit('enough')."),
        (leaving_later, "leaving_later failed: RuntimeError: It has called sys.exit('enough')."),
        (cancelled, "cancelled failed: RuntimeError: It has raised CancelledError()."),
        (cancelled_later, "cancelled_later failed: RuntimeError: It has raised CancelledError()."),
    ],
)
def test_an_odd_receiver_that_fails_keeps_no_other_from_being_called(
    manager, record_of, connect, caplog, receiver, error
):
    told: list[str] = []

    def note(task_name: str, **kwargs: Any) -> None:
        told.append(task_name)

    async def note_later(task_name: str, **kwargs: Any) -> None:
        told.append(task_name)

    for each in (receiver, note, note_later):
        connect(signals.task_started, each)
    name = manager.launch_async_task(tasks.add, 1, sync=True)
    record = record_of(name)
    assert record.status == "success"
    assert told == [name, name]
    assert record.events.get(event="hook_error").message == f"The start receiver of tests.unit.test_signals.{error}"
    assert error.rpartition(": ")[2] in caplog.text


def test_an_async_receiver_is_awaited(manager, connect):
    told: list[str] = []

    async def note(task_name: str, **kwargs: Any) -> None:
        told.append(task_name)

    connect(signals.task_created, note)
    name = manager.launch_async_task(tasks.add, 1)
    assert told == [name]


def test_the_code_of_the_docs_tells_the_team(manager, monkeypatch):
    page = (settings.ROOT / "docs" / "signals.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    posted: list[str] = []
    chat = ModuleType("myapp.chat")
    chat.post = posted.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "myapp", ModuleType("myapp"))
    monkeypatch.setitem(sys.modules, "myapp.chat", chat)
    # Receivers are connected weakly, and live as long as their module.
    found: dict[str, Any] = {}
    exec(block, found)
    with suppress(ValueError):
        manager.launch_async_task(tasks.fail, sync=True)
    name = TaskRecord.objects.get().task_name
    assert posted == [f"{name} has failed: it broke", f"{name}: fail"]
    assert all(f"`{signal}`" in page for signal in signals.__all__)
    signals.task_failed.disconnect(found["tell_the_team"])
    signals.task_finished.disconnect(found["note_the_end"])
