"""Statements that Django writes once: they must do what the querysets that they are made of would."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Upper
from django.db.models.signals import post_save, pre_save
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord
from powercrud_dashboard.models.prepared import (
    PreparedDelete,
    PreparedInsert,
    PreparedSave,
    PreparedUpdate,
    Slot,
)
from powercrud_dashboard.text import storable
from tests import work

pytestmark = pytest.mark.django_db


@pytest.fixture
def records() -> list[TaskRecord]:
    return [
        TaskRecord.objects.create(task_name=name, label=name, func="f", manager_class="m", attempts=number)
        for number, name in enumerate(("one", "two", "three"))
    ]


def test_an_update_returns_the_row_as_django_would(records):
    update = PreparedUpdate(
        TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")), attempts=F("attempts") + 1
    )
    TaskRecord.objects.filter(task_name="two").update(
        conflict_ids={"a.b": ["1"]}, by_object=True, run_time=timedelta(seconds=2.5), started_at=timezone.now()
    )
    for name in ("one", "two"):
        changed = update.first(["label"], task_name=name, label="b")
        kept = TaskRecord.objects.get(task_name=name)
        assert changed == kept
        assert changed.__dict__.keys() == kept.__dict__.keys()
        for field in TaskRecord._meta.concrete_fields:
            assert getattr(changed, field.attname) == getattr(kept, field.attname), field.name
            assert type(getattr(changed, field.attname)) is type(getattr(kept, field.attname)), field.name
    assert update.first(["label"], task_name="four", label="b") is None


def test_columns_that_an_update_does_not_return_are_loaded_when_they_are_wanted(records):
    update = PreparedUpdate(
        TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")), ("id", "attempts")
    )
    changed = update.first(["label"], task_name="two", label="b")
    assert changed.attempts == 1
    assert "label" in changed.get_deferred_fields()
    assert changed.label == "b"


def test_an_update_sets_what_is_fixed_and_what_is_given(records):
    update = PreparedUpdate(
        TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")), attempts=F("attempts") + 10
    )
    now = timezone.now()
    assert (
        update.execute(["label", "finished_at", "result"], task_name="two", label="b", finished_at=now, result=[1]) == 1
    )
    # Another set of columns is another statement.
    assert update.execute(["label"], task_name="three", label="c") == 1
    assert update.execute(task_name="four") == 0
    kept = list(TaskRecord.objects.order_by("pk").values_list("label", "attempts", "finished_at", "result"))
    assert kept == [("one", 0, None, None), ("b", 11, now, [1]), ("c", 12, None, None)]


def test_a_delete_removes_the_rows_it_names(records):
    delete = PreparedDelete(ActiveTask, lambda: ActiveTask.objects.filter(task_name=Slot("task_name")))
    for name in ("one", "two"):
        ActiveTask.objects.create(task_name=name, state="pending")
    assert delete.execute(task_name="one") == 1
    assert delete.execute(task_name="one") == 0
    assert ActiveTask.objects.get().task_name == "two"


def line(record: TaskRecord, **fields: object) -> dict[str, object]:
    """All fields of an event."""
    now = timezone.now()
    rest = {"event": "log", "timestamp": now, "actor": None, "actor_label": "", "message": "", "payload": {}}
    return {"record": record.pk, **rest, **fields}


def test_an_insert_keeps_all_fields(records):
    insert = PreparedInsert(TaskEvent)
    insert.execute([line(records[0], message='50 % of "%s"', payload={"level": "50 %"})])
    event = TaskEvent.objects.get()
    assert (event.record, event.message, event.payload) == (records[0], '50 % of "%s"', {"level": "50 %"})
    assert timezone.now() - event.timestamp < timedelta(minutes=1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_several_rows_are_inserted_in_their_order(records, count):
    messages = [f"line {number}" for number in range(count)]
    PreparedInsert(TaskEvent).execute([line(records[0], message=message) for message in messages])
    assert list(TaskEvent.objects.order_by("pk").values_list("message", flat=True)) == messages


@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_number_of_converted_rows_are_inserted_with_defaults_for_what_they_do_not_have(count):
    now = timezone.now()
    odd = [
        {},
        {"label": '50 % of "%s", {a,b} NULL \x00 \ud800', "run_time": timedelta(days=2, microseconds=1)},
        {"task_args": [None, {"a": [1, "\\"]}], "started_at": now},
        {"task_kwargs": {}, "worker_pid": 7},
        {"is_counted": True, "user_id": None},
    ]
    rows = [{"task_name": f"task {number}", **odd[number % len(odd)]} for number in range(count)]
    insert = PreparedInsert(TaskRecord)
    given = [{"user" if name == "user_id" else name: value for name, value in row.items()} for row in rows]
    insert.insert(insert.converted(given))
    assert TaskRecord.objects.count() == count
    for row in rows:
        expected = TaskRecord(**row)
        stored = TaskRecord.objects.get(task_name=row["task_name"])
        expected.label = storable(expected.label)
        for field in TaskRecord._meta.concrete_fields:
            if field.name not in ("id", "created_at"):
                assert getattr(stored, field.attname) == getattr(expected, field.attname), field.name


def test_a_saved_row_knows_what_the_database_has_given_it():
    save = PreparedSave(ActiveTask)
    for name in ("one", "two"):
        active = ActiveTask(task_name=name, state="pending", policy={"max_retries": 2}, sent_at=timezone.now())
        save.save(active)
        kept = ActiveTask.objects.get(task_name=name)
        assert active == kept
        assert (active._state.adding, active._state.db) == (kept._state.adding, kept._state.db)
        assert active.created_at is not None
        for field in ActiveTask._meta.concrete_fields:
            assert getattr(active, field.attname) == getattr(kept, field.attname), field.name


def test_a_value_in_the_place_of_the_databases_own_is_kept():
    save = PreparedSave(ActiveTask)
    save.save(ActiveTask(task_name="one", state="pending"))
    yesterday = timezone.now() - timedelta(days=1)
    save.save(ActiveTask(task_name="two", state="pending", queued_at=yesterday))
    assert ActiveTask.objects.get(task_name="two").queued_at == yesterday


@pytest.fixture
def listen():
    """Connects a receiver to a signal of task records for the time of the test."""
    connected = []

    def connect(signal, receiver):
        signal.connect(receiver, sender=TaskRecord)
        connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver, sender=TaskRecord)


def test_saving_a_row_tells_those_who_listen(listen, superuser):
    heard = []

    def after(instance, **kwargs):
        there = TaskRecord.objects.filter(pk=instance.pk).exists()
        heard.append((kwargs["created"], kwargs["raw"], kwargs["update_fields"], kwargs["using"], there))

    listen(post_save, after)
    PreparedSave(TaskRecord).save(TaskRecord(task_name="one", label="one", user=superuser))
    assert heard == [(True, False, None, "default", True)]
    assert TaskRecord.objects.get().user == superuser


def test_who_listens_before_a_row_is_saved_may_change_it_as_with_django(listen):
    def before(instance, **kwargs):
        instance.label = "changed"
        instance.message = Upper(Value("an expression"))

    listen(pre_save, before)
    PreparedSave(TaskRecord).save(TaskRecord(task_name="one", label="one"))
    kept = TaskRecord.objects.get()
    assert (kept.label, kept.message) == ("changed", "AN EXPRESSION")


def test_django_writes_a_statement_once(records):
    update = PreparedUpdate(TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")))

    def written(**values: str) -> list[type]:
        return work.compiled_models(lambda: update.execute(["label"], **values))

    assert written(task_name="one", label="a") == [TaskRecord]
    assert written(task_name="two", label="b") == []
    assert TaskRecord.objects.get(task_name="two").label == "b"


def test_an_error_breaks_the_transaction_around_it_as_djangos_own_would(records):
    update = PreparedUpdate(TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")))
    with transaction.atomic():
        with pytest.raises(IntegrityError):
            update.execute(["label"], task_name="one", label=None)
        assert connection.needs_rollback
        connection.set_rollback(True)
