"""Statements that Django writes once: they must do what the querysets that they are made of would."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import patch

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Upper
from django.db.models.signals import post_save, pre_save
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord, prepared
from powercrud_dashboard.models.prepared import (
    PreparedDelete,
    PreparedInsert,
    PreparedSave,
    PreparedSelect,
    PreparedUpdate,
    Slot,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def records() -> list[TaskRecord]:
    return [
        TaskRecord.objects.create(task_name=name, label=name, func="f", manager_class="m", attempts=number)
        for number, name in enumerate(("one", "two", "three"))
    ]


def test_a_select_returns_the_row_as_django_would(records):
    select = PreparedSelect(TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")))
    TaskRecord.objects.filter(task_name="two").update(
        conflict_ids={"a.b": ["1"]}, by_object=True, run_time=timedelta(seconds=2.5), started_at=timezone.now()
    )
    for name in ("one", "two"):
        found = select.first(task_name=name)
        kept = TaskRecord.objects.get(task_name=name)
        assert found == kept
        assert found.__dict__.keys() == kept.__dict__.keys()
        for field in TaskRecord._meta.concrete_fields:
            assert getattr(found, field.attname) == getattr(kept, field.attname), field.name
            assert type(getattr(found, field.attname)) is type(getattr(kept, field.attname)), field.name
    assert select.first(task_name="four") is None


def test_a_select_of_some_columns_leaves_the_others_to_be_loaded_when_they_are_wanted(records):
    select = PreparedSelect(
        TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")).only("task_name")
    )
    found = select.first(task_name="two")
    assert "label" in found.get_deferred_fields()
    assert found.label == "two"


def test_a_select_returns_the_keys_of_all_rows_in_their_order(records):
    newest = PreparedSelect(TaskRecord, lambda: TaskRecord.objects.order_by("-pk").only("pk")[:2])
    assert newest.keys() == [records[2].pk, records[1].pk]


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


def test_an_insert_keeps_all_fields_and_their_defaults(records):
    insert = PreparedInsert(TaskEvent)
    insert.execute(TaskEvent(record=records[0], event="log", message='50 % of "%s"', payload={"level": "50 %"}))
    event = TaskEvent.objects.get()
    assert (event.record, event.message, event.payload) == (records[0], '50 % of "%s"', {"level": "50 %"})
    assert timezone.now() - event.timestamp < timedelta(minutes=1)


def test_a_saved_row_knows_what_the_database_has_given_it():
    save = PreparedSave(ActiveTask)
    for name in ("one", "two"):
        active = ActiveTask(task_name=name, state="pending", policy={"max_retries": 2}, sent_at=timezone.now())
        save.execute(active)
        kept = ActiveTask.objects.get(task_name=name)
        assert active == kept
        assert (active._state.adding, active._state.db) == (kept._state.adding, kept._state.db)
        assert active.created_at is not None
        for field in ActiveTask._meta.concrete_fields:
            assert getattr(active, field.attname) == getattr(kept, field.attname), field.name


def test_a_value_in_the_place_of_the_databases_own_is_kept():
    save = PreparedSave(ActiveTask)
    save.execute(ActiveTask(task_name="one", state="pending"))
    yesterday = timezone.now() - timedelta(days=1)
    save.execute(ActiveTask(task_name="two", state="pending", queued_at=yesterday))
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
    PreparedSave(TaskRecord).execute(TaskRecord(task_name="one", label="one", user=superuser))
    assert heard == [(True, False, None, "default", True)]
    assert TaskRecord.objects.get().user == superuser


def test_who_listens_before_a_row_is_saved_may_change_it_as_with_django(listen):
    def before(instance, **kwargs):
        instance.label = "changed"
        instance.message = Upper(Value("an expression"))

    listen(pre_save, before)
    PreparedSave(TaskRecord).execute(TaskRecord(task_name="one", label="one"))
    kept = TaskRecord.objects.get()
    assert (kept.label, kept.message) == ("changed", "AN EXPRESSION")


def test_a_database_that_does_not_return_what_it_inserts_is_left_to_django(monkeypatch):
    monkeypatch.setattr(prepared, "RETURN_WHAT_THEY_INSERT", ())
    active = ActiveTask(task_name="one", state="pending")
    with patch.object(ActiveTask, "save", autospec=True, side_effect=ActiveTask.save) as djangos_own:
        PreparedSave(ActiveTask).execute(active)
    djangos_own.assert_called_once_with(active, force_insert=True, using="default")
    assert ActiveTask.objects.get() == active


def test_a_second_call_needs_django_no_more(records, monkeypatch):
    update = PreparedUpdate(TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")))
    update.execute(["label"], task_name="one", label="a")
    monkeypatch.setattr("django.db.models.sql.compiler.SQLCompiler.compile", None)
    assert update.execute(["label"], task_name="two", label="b") == 1


def test_an_error_breaks_the_transaction_around_it_as_djangos_own_would(records):
    update = PreparedUpdate(TaskRecord, lambda: TaskRecord.objects.filter(task_name=Slot("task_name")))
    with transaction.atomic():
        with pytest.raises(IntegrityError):
            update.execute(["label"], task_name="one", label=None)
        assert connection.needs_rollback
        connection.set_rollback(True)
