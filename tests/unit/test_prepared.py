"""Statements that Django writes once: they must do what the querysets that they are made of would."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord
from powercrud_dashboard.models.prepared import PreparedDelete, PreparedInsert, PreparedSelect, PreparedUpdate, Slot

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
