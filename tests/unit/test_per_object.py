"""Actions that run per object: an outcome says what is stored, and a lost connection is no object's failure."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError, IntegrityError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.admin import background_action
from powercrud_dashboard.admin import per_object as per_object_module
from powercrud_dashboard.async_context import get_current_task, task_context
from powercrud_dashboard.models import TaskCursor, TaskObject, TaskRecord
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from tests.clicks import TASKS, choose, last, said
from tests.testapp.admin import ODD, ProjectAdmin
from tests.testapp.models import Project, Shelf
from tests.workers import database_refuses, deliver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(3)


@pytest.fixture
def run_for(boss, with_actions) -> Callable[..., TaskRecord]:
    """Run a function as an action per object in a worker; return the record."""

    def run(body: Callable[[Project], object], rows: list[Project]) -> TaskRecord:
        def each(modeladmin, request, project):
            body(project)

        with_actions(background_action(permissions=["change"], per_object=True)(each))
        choose(boss, "each", rows)
        # An error of the task is recorded.
        with suppress(Exception):
            deliver()
        return last()

    return run


def outcomes(record: TaskRecord) -> dict[str, str]:
    return dict(record.objects_worked_on.order_by("pk").values_list("object_id", "outcome"))


def counts(record: TaskRecord) -> tuple[int, int, int]:
    return record.done_count, record.failed_count, record.skipped_count


def ledger(record: TaskRecord) -> tuple[int, int, int]:
    found = Counter(outcomes(record).values())
    return found["done"], found["failed"], found["skipped"]


def stamp(project: Project) -> None:
    project.archived = True
    project.save()


def stamped() -> set[int]:
    return set(Project.objects.filter(archived=True).values_list("pk", flat=True))


# What is stored


def violate_a_constraint(project: Project) -> None:
    stamp(project)
    try:
        Project.objects.create(pk=project.pk, name="duplicate")
    except IntegrityError:
        """Swallowed without a savepoint: nothing of the transaction can be committed."""


def execute_nonsense(project: Project) -> None:
    stamp(project)
    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT no_such_column FROM no_such_table")
        except DatabaseError:
            """PostgreSQL takes no further statement."""


@pytest.mark.parametrize("body", [violate_a_constraint, execute_nonsense])
def test_an_object_is_done_exactly_if_its_changes_are_stored(run_for, projects, body):
    record = run_for(body, projects[:2])
    assert record.done_count == len(stamped())
    assert counts(record) == ledger(record)
    if body is violate_a_constraint:
        assert record.failed_count == 2
        assert "a database error was caught inside of their transaction" in record.objects_worked_on.first().error


def test_so_it_is_in_the_request(boss, projects, at_once, with_actions):
    def each(modeladmin, request, project):
        violate_a_constraint(project)

    with_actions(background_action(permissions=["change"], per_object=True)(each))
    answer = choose(boss, "each", projects[:2])
    assert "All 2 objects failed" in said(answer)[0]
    assert (counts(last()), stamped()) == ((0, 2, 0), set())


def test_a_constraint_that_is_checked_at_the_commit_fails_the_object(run_for, projects):
    def refer_to_nobody(project):
        stamp(project)
        if project.pk == projects[0].pk:
            LogEntry.objects.create(user_id=999_999, action_flag=1, object_repr="x")

    record = run_for(refer_to_nobody, projects)
    assert (counts(record), ledger(record)) == ((2, 1, 0), (2, 1, 0))
    assert stamped() == {project.pk for project in projects[1:]}


def test_a_callback_after_the_commit_runs_for_what_is_stored(run_for, projects):
    called = []

    def call_back(project):
        transaction.on_commit(lambda: called.append(project.pk))
        if project.pk == projects[0].pk:
            raise LookupError("not this one")

    run_for(call_back, projects)
    assert called == [project.pk for project in projects[1:]]


def test_an_error_of_such_a_callback_is_told_with_what_is_stored(run_for, projects):
    def fail_afterwards(project):
        stamp(project)
        transaction.on_commit(lambda: {}["no mail server"])

    record = run_for(fail_afterwards, projects[:1])
    assert (counts(record), stamped()) == ((0, 1, 0), {projects[0].pk})
    error = record.objects_worked_on.get().error
    assert error == "The changes are stored, but a callback after their commit failed. KeyError: 'no mail server'"


def test_without_its_outcome_the_changes_of_an_object_are_not_stored(run_for, projects):
    table = connection.ops.quote_name(TaskObject._meta.db_table)
    with database_refuses(f"UPDATE {table}", 1):
        record = run_for(stamp, projects)
    assert (counts(record), ledger(record)) == ((2, 1, 0), (2, 1, 0))
    assert stamped() == {project.pk for project in projects[1:]}


def test_an_outcome_that_can_not_be_written_is_not_counted(run_for, projects):
    def fail(project):
        raise LookupError("no")

    table = connection.ops.quote_name(TaskObject._meta.db_table)
    with database_refuses(f"UPDATE {table}", 2):
        record = run_for(fail, projects)
    assert ledger(record) == counts(record) == (0, 2, 0)
    assert outcomes(record)[str(projects[0].pk)] == "not_reached"


def test_an_object_that_has_no_text_is_done(run_for, projects, monkeypatch):
    def text(self):
        if get_current_task():
            raise LookupError("its owner is gone")
        return self.name

    monkeypatch.setattr(Project, "__str__", text)
    record = run_for(stamp, projects)
    assert ledger(record) == (3, 0, 0)
    assert "can't be printed" in record.objects_worked_on.first().text


def test_a_permission_that_can_not_be_asked_fails_the_object_alone(run_for, projects, monkeypatch):
    def has_change_permission(self, request, obj=None):
        return obj is None or {"project 0": True, "project 1": True}[obj.name]

    monkeypatch.setattr(ProjectAdmin, "has_change_permission", has_change_permission)
    assert ledger(run_for(stamp, projects)) == (2, 1, 0)


def test_each_object_is_read_when_its_turn_comes(run_for, projects):
    def rename_the_last(project):
        stamp(project)
        if project.pk == projects[0].pk:
            Project.objects.filter(pk=projects[2].pk).update(name="newer")

    run_for(rename_the_last, projects)
    assert Project.objects.get(pk=projects[2].pk).name == "newer"


def test_the_counts_of_a_lost_worker_are_those_of_its_objects(boss, projects, manager):
    choose(boss, "visit", projects)
    record = last()
    record.objects_worked_on.filter(object_id=projects[0].pk).update(outcome="done")
    manager.async_task_lifecycle("fail", record.task_name, reason="worker_lost", error="lost")
    record.refresh_from_db()
    assert (counts(record), sorted(outcomes(record).values())) == ((1, 0, 0), ["done", "not_reached", "not_reached"])


# A lost connection


def lose_connection(alias: str = "default") -> None:
    lost = connections[alias]
    if lost.vendor == "postgresql":
        with lost.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    else:
        lost.close()
        raise OperationalError("the server closed the connection")


def test_an_object_is_processed_again_after_a_lost_connection(run_for, projects):
    calls = []

    def lose_it_once(project):
        stamp(project)
        calls.append(project.pk)
        if len(calls) == 2:
            lose_connection()

    record = run_for(lose_it_once, projects)
    first, second, third = (project.pk for project in projects)
    assert calls == [first, second, second, third]
    assert (record.status, counts(record), ledger(record)) == ("success", (3, 0, 0), (3, 0, 0))
    assert stamped() == {first, second, third}


def test_an_object_that_always_loses_it_fails_alone(run_for, projects):
    def lose_it_always(project):
        stamp(project)
        if project.pk == projects[1].pk:
            lose_connection()

    record = run_for(lose_it_always, projects)
    assert (record.status, counts(record), ledger(record)) == ("success", (2, 1, 0), (2, 1, 0))


@pytest.mark.parametrize("limit", [1, 100])
def test_an_object_whose_commit_was_not_answered_is_not_processed_twice(run_for, projects, settings, limit):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": limit}
    calls = []

    def commit(project):
        TaskCursor.objects.update(position=project.pk, done=F("done") + 1)
        TaskObject.objects.filter(object_id=project.pk).update(outcome="done")
        connection.close()

    def lose_the_answer(project):
        calls.append(project.pk)
        if project.pk == projects[2].pk:
            connection.close()
            # As if the transaction had been committed before the connection was lost.
            committing = threading.Thread(target=commit, args=[project])
            committing.start()
            committing.join()
            raise OperationalError("the server closed the connection")

    record = run_for(lose_the_answer, projects)
    assert calls == [project.pk for project in projects]
    assert (counts(record), ledger(record)) == ((3, 0, 0), (min(limit, 3), 0, 0))


@pytest.mark.django_db(transaction=True, databases=["default", "archive"])
def test_if_the_database_does_not_come_back_the_rest_is_not_reached(boss, monkeypatch):
    monkeypatch.setattr(per_object_module, "RECONNECT_DELAYS", (0, 0))
    shelves = [Shelf.objects.create(label=label) for label in ("one", "two", "three")]
    archive = connections["archive"]
    name = archive.settings_dict["NAME"]

    def fill(self):
        if self.label == "two":
            archive.settings_dict["NAME"] = "/nowhere/archive.sqlite3"
            lose_connection("archive")
        return "shelf"

    monkeypatch.setattr(Shelf, "save", lambda self, **kwargs: fill(self))
    choose(boss, "fill", shelves, "/admin/testapp/shelf/")
    try:
        with pytest.raises(OperationalError, match="unable to open"):
            deliver()
    finally:
        archive.settings_dict["NAME"] = name
    record = last()
    assert (record.status, counts(record)) == ("failed", (1, 0, 0))
    assert list(outcomes(record).values()) == ["done", "not_reached", "not_reached"]


def be_odd(project: Project) -> None:
    if project.name == "project 1":
        raise LookupError("no price today")


def test_the_traceback_of_each_failure_is_kept_and_shown(boss, run_for, projects):
    record = run_for(be_odd, projects)
    failed = record.objects_worked_on.get(outcome="failed")
    assert failed.traceback.startswith("Traceback (most recent call last)")
    assert "in be_odd" in failed.traceback
    assert failed.traceback.endswith("LookupError: no price today\n")
    page = boss.get(f"{TASKS}{record.pk}/change/").content.decode()
    assert page.count("Traceback of project") == 1
    assert "in be_odd" in page


def test_the_objects_of_a_task_can_be_filtered(boss, run_for, projects):
    record = run_for(be_odd, projects)

    def shown(**query: str) -> set[str]:
        page = boss.get(f"{TASKS}{record.pk}/change/", query).content.decode()
        (rows,) = re.findall('<ul class="pcrud-objects">(.*?)</ul>', page, re.DOTALL)
        return set(re.findall("project [0-9]", rows))

    assert shown(outcome="failed") == {"project 1"}
    assert shown(outcome="done") == {"project 0", "project 2"}
    assert shown(object="price") == {"project 1"}
    assert shown(object="be_odd", outcome="done") == set()
    assert shown(outcome="unknown") == {"project 0", "project 1", "project 2"}


def test_a_retry_of_the_failed_objects_says_that_it_does_not_know_all(boss, make_projects, settings):
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False, "DASHBOARD_OBJECT_LIMIT": 3}
    projects = make_projects(8)
    Project.objects.exclude(pk=projects[0].pk).update(name=ODD)
    choose(boss, "visit", projects)
    answer = boss.post(f"{TASKS}{last().pk}/retry-objects/", follow=True)
    # The first three, and as many that failed.
    assert "Only 4 of the 8 objects are kept by name" in said(answer)[1]


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 2), (3, 1), (1, 1, 1, 1)])
def test_how_many_failed_objects_are_kept_does_not_depend_on_when_they_are_written(
    manager, settings, make_projects, sizes
):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": 3}
    projects = make_projects(6)
    name = manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids={"testapp.Project": projects})
    # The launch has filled the ledger with the first three. There is room for three that fail.
    rest = [str(project.pk) for project in projects[1:5]]
    for size in sizes:
        part, rest = rest[:size], rest[size:]
        outcomes = [ObjectOutcome(Project._meta.label_lower, key, Outcome.FAILED) for key in part]
        manager.record_lifecycle_events(name, [("objects", {"outcomes": outcomes})])
    kept = {str(project.pk) for project in projects[1:4]}
    assert set(TaskObject.objects.filter(outcome="failed").values_list("object_id", flat=True)) == kept


def test_a_ledger_that_the_launch_has_filled_is_not_counted_again(manager, settings, projects):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": 2}
    name = manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids={"testapp.Project": projects})
    first, __, beyond = (str(project.pk) for project in projects)
    with CaptureQueriesContext(connection) as queries, task_context(name) as task:
        for key in (first, beyond):
            task.note_outcome("testapp.project", key, "done")
    assert not [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert set(TaskObject.objects.filter(outcome="done").values_list("object_id", flat=True)) == {first}
