"""A task's spec is a format: what an older release has written is read, and what a newer one adds is ignored."""

from __future__ import annotations

import base64
import dataclasses
import json
import pickle
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from django.utils import timezone
from django_q.models import OrmQ
from django_q.signing import SignedPackage

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.engine.spec import VERSION, TaskCall, TaskSpec, is_plain_json
from powercrud_dashboard.exceptions import UnreadableSpec
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.worker.report import NotRun
from tests.clicks import TASKS
from tests.testapp import tasks

DATA = Path(__file__).parents[1] / "data"
ADD = "tests.testapp.tasks.add"

#: Every field differs from its default.
FULL = TaskSpec(
    func=ADD,
    args=(1, "two", [3.5, None]),
    kwargs={"right": {"deep": [True, "ü"]}},
    options={"save": False},
    label="Add",
    shown_func="shop.tasks.add",
    launched_by="anna",
    trace={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    manager_class="tests.testapp.managers.QuietManager",
    manager_config={"tone": "polite"},
    conflict_ids={"testapp.project": ["1", "2"]},
    parent_ids={"testapp.business": ["7"]},
    object_ids={"testapp.specialthing": ["x"]},
    object_count=3,
    object_texts={"testapp.project": {"1": "First"}},
    affected_objects=["First", "and more"],
    by_object=True,
    is_partial=True,
    group="nightly",
    cluster="slow",
    timeout=60,
    unique_key="once",
    retry=RetryPolicy(3, backoff=5, retry_on=[OSError], give_up_on=[KeyError], requeue_on_stop=False),
)
#: Arguments that JSON does not give back as they are.
PICKLED = dataclasses.replace(FULL, args=((1, 2), date(2026, 11, 26)), kwargs={"right": {Decimal("1.5")}})


def test_no_field_is_left_out_above():
    for field in dataclasses.fields(TaskSpec):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        assert getattr(FULL, field.name) != default, field.name


@pytest.mark.parametrize(("name", "spec"), [("plain", FULL), ("pickled", PICKLED), ("least", TaskSpec(ADD))])
def test_specs_of_version_1_are_read(name, spec):
    # Without the fields that came later.
    spec = dataclasses.replace(spec, launched_by="", trace={}, parent_ids={}, is_partial=False)
    text = (DATA / f"spec_v1_{name}.json").read_text()
    assert TaskSpec.from_text(text) == spec
    if name != "pickled":
        # A pickle may be written in another way by another Python.
        assert json.loads(spec.to_text()) == json.loads(text)


def test_a_queue_message_of_version_1_is_read():
    message = base64.b64decode((DATA / "task_call_v1.pickle.b64").read_text())
    call = pickle.loads(message)
    first = dataclasses.replace(FULL, launched_by="", trace={})
    assert call == TaskCall("task-1", first.for_worker().to_text(), "shop.tasks.add")
    assert str(call) == "shop.tasks.add"


@pytest.mark.parametrize("spec", [FULL, PICKLED])
def test_what_is_signed_is_given_back(spec):
    assert TaskSpec.from_signed(spec.to_signed()) == spec


@pytest.mark.parametrize("spec", [FULL, PICKLED])
def test_a_worker_gets_what_it_needs_to_run_it(spec):
    small = TaskSpec.from_text(spec.for_worker().to_text())
    for name in ("func", "args", "kwargs"):
        assert getattr(small, name) == getattr(spec, name), name
    assert small.conflict_ids == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"priority": 5, "of_later": {"x": [1]}}, FULL),
        ({"version": 0}, FULL),
        ({"retry": {**FULL.retry.to_json(), "jitter": "none"}}, FULL),
    ],
    ids=["unknown fields", "an older version", "unknown field of the retry policy"],
)
def test_specs_of_other_releases_are_read(change, expected):
    state = {**json.loads(FULL.to_text()), **change}
    assert TaskSpec.from_text(json.dumps(state)) == expected


def test_a_spec_of_a_newer_version_is_refused():
    state = {**json.loads(FULL.to_text()), "version": VERSION + 1}
    with pytest.raises(UnreadableSpec, match="newer release") as refusal:
        TaskSpec.from_text(json.dumps(state))
    assert refusal.value.is_newer


def test_without_its_arguments_the_rest_is_readable():
    """The class of an argument is gone since a deploy."""
    state = json.loads(PICKLED.to_text())
    state["pickle"] = base64.b64encode(b"cgone_module\nGone\n.").decode()
    with pytest.raises(UnreadableSpec, match="gone_module"):
        TaskSpec.from_text(json.dumps(state))
    assert state["label"] == "Add"


@pytest.mark.parametrize(
    ("value", "is_plain"),
    [
        ({"a": [1, 2.5, True, None, "text"]}, True),
        ((1, 2), False),
        ({1: "a"}, False),
        (float("nan"), False),
        ({"a": {1, 2}}, False),
        (type("Text", (str,), {})("a"), False),
    ],
)
def test_what_json_gives_back_as_it_is(value, is_plain):
    assert is_plain_json(value) is is_plain


def test_an_argument_that_contains_itself_is_pickled():
    endless: list[object] = []
    endless.append(endless)
    assert not is_plain_json(endless)
    kept = TaskSpec.from_text(TaskSpec(ADD, (endless,)).to_text()).args[0]
    assert kept[0] is kept


# In the queue


def rewrite_message(**change: object) -> None:
    """Change the spec in the only message of the queue."""
    queued = OrmQ.objects.get()
    task = queued.task
    call = task["func"]
    task["func"] = dataclasses.replace(call, spec=json.dumps({**json.loads(call.spec), **change}))
    queued.payload = SignedPackage.dumps(task)
    queued.save()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("change", [{"of_later": 1}, {"version": 0}])
def test_a_task_of_another_release_runs(manager, record_of, change):
    name = manager.launch_async_task(ADD, 1, right=2)
    rewrite_message(**change)
    assert OrmQ.objects.get().task["func"]() == 3
    assert record_of(name).status == "success"


@pytest.mark.django_db(transaction=True)
def test_a_message_with_more_than_this_release_knows_runs(manager, record_of):
    name = manager.launch_async_task(ADD, 1, right=2)
    call = OrmQ.objects.get().task["func"]
    object.__setattr__(call, "of_later", 1)
    assert pickle.loads(pickle.dumps(call))() == 3
    assert record_of(name).status == "success"


@pytest.mark.django_db(transaction=True)
def test_a_policy_with_more_than_this_release_knows_retries(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=RetryPolicy(1, backoff=0))
    ActiveTask.objects.update(policy={**RetryPolicy(1, backoff=0).to_json(), "jitter": {"of": "later"}})
    with pytest.raises(LookupError):
        OrmQ.objects.get().task["func"]()
    assert record_of(name).status == "pending"
    assert manager.send_due_tasks() == 1


@pytest.mark.django_db(transaction=True)
def test_a_state_that_this_release_does_not_know_is_shown_and_left_alone(boss, manager, record_of):
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
    record = record_of(name)
    OrmQ.objects.all().delete()
    long_ago = timezone.now() - timedelta(days=2)
    ActiveTask.objects.update(state="of later", queued_at=long_ago)
    TaskRecord.objects.update(status="of later", created_at=long_ago)
    for page in ("", f"{record.pk}/change/", f"{record.pk}/raw/", "locks/", "cluster/"):
        assert boss.get(f"{TASKS}{page}").status_code == 200
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert not manager.is_task_complete(name)
    assert ActiveTask.objects.get().locks.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_task_of_a_newer_release_is_left_in_the_queue(manager, record_of):
    name = manager.launch_async_task(ADD, 1)
    rewrite_message(version=VERSION + 1)
    assert OrmQ.objects.get().task["func"]() == NotRun(acknowledged=False)
    assert record_of(name).status == "pending"


@pytest.mark.django_db(transaction=True)
def test_a_task_whose_arguments_can_not_be_restored_fails(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {1}})
    rewrite_message(pickle=base64.b64encode(b"cgone_module\nGone\n.").decode())
    call = OrmQ.objects.get().task["func"]
    with pytest.raises(UnreadableSpec):
        call()
    record = record_of(name)
    assert record.status == "failed"
    assert "gone_module" in record.error
    assert not ActiveTask.objects.exists()


@pytest.mark.django_db
def test_a_message_is_small_however_many_objects_a_task_has(manager):
    manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": range(5_000)})
    assert len(OrmQ.objects.get().payload) < 2_000
    assert len(TaskRecord.objects.get().payload) > 5_000


@pytest.mark.django_db
def test_plain_arguments_are_kept_as_json(manager, record_of):
    spec = TaskSpec.from_signed(record_of(manager.launch_async_task(ADD, 1, right=2)).payload)
    assert "pickle" not in json.loads(spec.to_text())
    assert (spec.args, spec.kwargs) == ((1,), {"right": 2})
