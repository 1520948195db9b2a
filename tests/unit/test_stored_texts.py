"""What is kept does not depend on the language of the person who caused it; the pages translate it."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import re

import pytest
from django import forms
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models
from django.test import RequestFactory
from django.utils import timezone, translation
from django.utils.translation import gettext_lazy
from django_q.brokers.orm import ORM
from django_q.models import OrmQ
from django_q.signing import SignedPackage

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import ALL_OBJECTS, AsyncManager
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import AllObjectsFailed, EnqueueError, TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskObject, TaskRecord, WorkerProcess
from powercrud_dashboard.text import translated
from tests.clicks import TASKS, choose
from tests.testapp.admin import ODD, RenameForm
from tests.testapp.models import OrdinaryProject, Project
from tests.workers import claimed_elsewhere, deliver

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"
#: A text that Django's own catalogue has in German.
LAZY = gettext_lazy("This field is required.")


def raise_lazily() -> None:
    raise ValidationError(LAZY)


def talk_lazily() -> object:
    task = get_current_task()
    task.log(LAZY)
    task.update_progress(LAZY)
    return {"answer": LAZY}


def launch_what_is_locked() -> None:
    AsyncManager().add_conflict_ids("somebody", {"testapp.Project": ALL_OBJECTS})
    AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1, 2, 3, 4, 5, 6, 7}})


def retry_what_is_queued() -> None:
    manager = AsyncManager()
    manager.retry_task(manager.launch_async_task(ADD, 1, task_key="queued"))


class LazyHookManager(DashboardAsyncManager):
    def async_task_lifecycle(self, event, task_name, **payload):
        super().async_task_lifecycle(event, task_name, **payload)
        raise ValidationError(LAZY)


def run(function: object, manager: AsyncManager | None = None, **options: object) -> None:
    name = (manager or AsyncManager()).launch_async_task(f"{__name__}.{function.__name__}", **options)
    task = OrmQ.objects.order_by("pk").first().task
    try:
        task["func"]()
    except Exception:
        assert TaskRecord.objects.get(task_name=name).status == "failed"


def lose_a_worker(boss) -> None:
    claimed_elsewhere(AsyncManager().launch_async_task(ADD, 1))
    WorkerProcess.objects.update(lost_at=timezone.now())
    AsyncManager().cleanup_completed_tasks()


def lose_a_worker_of_a_task_with_retries(boss) -> None:
    claimed_elsewhere(AsyncManager().launch_async_task(ADD, 1, retry=1))
    ActiveTask.objects.update(policy={"max_retries": 1, "retry_on": ["powercrud_dashboard.exceptions.WorkerLost"]})
    WorkerProcess.objects.update(lost_at=timezone.now())
    AsyncManager().cleanup_completed_tasks()


def lose_a_message(boss) -> None:
    AsyncManager().launch_async_task(ADD, 1)
    OrmQ.objects.all().delete()
    ActiveTask.objects.update(queued_at=timezone.now() - timezone.timedelta(days=2))
    AsyncManager().cleanup_completed_tasks()


def remove_by_hand(boss) -> None:
    AsyncManager().remove_active_task(AsyncManager().launch_async_task(ADD, 1))


def report_late(boss) -> None:
    name = AsyncManager().launch_async_task(ADD, 1)
    AsyncManager().cancel_task(name)
    DashboardAsyncManager().async_task_lifecycle("complete", name, result=1)


def fail_to_send(boss) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ORM, "enqueue", lambda self, message: raise_lazily())
        with pytest.raises(EnqueueError):
            AsyncManager().launch_async_task(ADD, 1)


def retry_what_can_not_be_restored(boss) -> None:
    AsyncManager().launch_async_task(ADD, 1, retry=1)
    ActiveTask.objects.update(next_run_at=timezone.now() - timezone.timedelta(days=1), payload="forged")
    AsyncManager().send_due_tasks()


def run_what_can_not_be_restored(boss) -> None:
    AsyncManager().launch_async_task(ADD, 1)
    queued = OrmQ.objects.get()
    task = queued.task
    spec = {**json.loads(task["func"].spec), "pickle": base64.b64encode(b"cgone_module\nGone\n.").decode()}
    task["func"] = dataclasses.replace(task["func"], spec=json.dumps(spec))
    queued.payload = SignedPackage.dumps(task)
    queued.save()
    with pytest.raises(ValueError, match="gone_module"):
        deliver()


def release_a_lock(boss) -> None:
    AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": ALL_OBJECTS})
    AsyncManager().release_conflict_lock(ConflictLock.objects.get())


def describe_lazily(boss) -> None:
    options = {"user": LAZY, "label": LAZY, "affected_objects": [LAZY], "task_kwargs": {"value": LAZY}}
    AsyncManager().launch_async_task("tests.testapp.tasks.echo", **options)


def click_on_odd_ones(boss) -> None:
    choose(boss, "visit", [Project.objects.create(name=ODD)])
    with pytest.raises(AllObjectsFailed):
        deliver()


def click_without_permission(boss) -> None:
    choose(boss, "archive", [Project.objects.create(name="one")])
    User.objects.update(is_superuser=False)
    with pytest.raises(PermissionDenied):
        deliver()


def delete_without_permission(boss) -> None:
    project = OrdinaryProject.objects.create(name="one")
    choose(boss, "delete_selected", [project], "/admin/testapp/ordinaryproject/", post="yes", reason="old")
    User.objects.update(is_superuser=False)
    with pytest.raises(PermissionDenied):
        deliver()


def rename_with_parameters_that_are_not_valid_any_more(boss) -> None:
    fields = {"pcrud-confirmed": "1", "pcrud-prefix": "new"}
    choose(boss, "rename", [Project.objects.create(name="one")], **fields)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(RenameForm.base_fields, "prefix", forms.CharField(max_length=1))
        with pytest.raises(ValidationError):
            deliver()


def click_and_leave(boss) -> None:
    choose(boss, "archive", [Project.objects.create(name="one")])
    User.objects.update(is_active=False)
    with pytest.raises(PermissionDenied):
        deliver()


def click_on_locked_ones(boss) -> None:
    projects = [Project.objects.create(name=name) for name in ("locked", "gone", "here")]
    AsyncManager().add_conflict_ids("somebody", {"testapp.Project": [projects[0].pk]})
    choose(boss, "visit", projects)
    projects[1].delete()
    deliver()


def click_for_a_large_file(boss) -> None:
    choose(boss, "names_as_csv", [Project.objects.create(name="one")])
    with pytest.raises(ValueError, match="DASHBOARD_FILE_LIMIT"):
        deliver()


def click_on_all_of_which_one_is_locked(boss) -> None:
    Project.objects.bulk_create(Project(name=f"project {number}") for number in range(1_010))
    some = list(Project.objects.all()[:20])
    choose(boss, "archive", some, select_across="1")
    AsyncManager().add_conflict_ids("somebody", {"testapp.Project": [some[0].pk]})
    with pytest.raises(TaskConflict):
        deliver()


SCENARIOS = {
    **{function.__name__: function for function in (lose_a_worker, lose_a_message, remove_by_hand, report_late)},
    **{function.__name__: function for function in (fail_to_send, release_a_lock, describe_lazily, click_on_odd_ones)},
    **{function.__name__: function for function in (click_without_permission, click_and_leave, click_on_locked_ones)},
    **{function.__name__: function for function in (click_for_a_large_file, click_on_all_of_which_one_is_locked)},
    **{function.__name__: function for function in (delete_without_permission,)},
    "invalid_parameters": rename_with_parameters_that_are_not_valid_any_more,
    "retry_what_can_not_be_restored": retry_what_can_not_be_restored,
    "run_what_can_not_be_restored": run_what_can_not_be_restored,
    "lose_a_worker_of_a_task_with_retries": lose_a_worker_of_a_task_with_retries,
    "raise_lazily": lambda boss: run(raise_lazily),
    "talk_lazily": lambda boss: run(talk_lazily),
    "launch_what_is_locked": lambda boss: run(launch_what_is_locked),
    "retry_what_is_queued": lambda boss: run(retry_what_is_queued),
    "fail_in_a_hook": lambda boss: run(talk_lazily, LazyHookManager()),
}


def stored_texts() -> list[object]:
    """Return all texts and documents of all rows, without what differs from one run to the next."""
    found = []
    for model in (TaskRecord, TaskEvent, TaskObject, ActiveTask):
        names = [
            field.name
            for field in model._meta.concrete_fields
            if isinstance(field, models.CharField | models.TextField | models.JSONField) and field.name != "payload"
        ]
        if model is TaskEvent:
            names.append("payload")
        found += [{"model": model.__name__, **values} for values in model.objects.order_by("pk").values(*names)]
    text = json.dumps(found, ensure_ascii=False, default=str, indent=1)
    # The code of the click's language is an argument of its task.
    varying = r"[0-9a-f]{8}-[0-9a-f-]{27}|0x[0-9a-f]+|\d[\d.:T+-]*|\"language\": \"..\"|\"unique_key\": \".*\""
    return re.sub(varying, "…", text).splitlines()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_kept_is_the_same_in_every_language(client_of, settings, scenario):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_FILE_LIMIT": 1, "CLEANUP_GRACE_PERIOD": 1}
    kept = {}
    for language in ("en", "de"):
        for model in (TaskEvent, TaskObject, ConflictLock, ActiveTask, TaskRecord, WorkerProcess, Project, User, OrmQ):
            model.objects.all().delete()
        boss = client_of(User.objects.create_superuser("boss"))
        with translation.override(language):
            SCENARIOS[scenario](boss)
        assert TaskRecord.objects.exists()
        kept[language] = stored_texts()
    assert kept["de"] == kept["en"]


def test_the_pages_translate_what_is_kept(client_of, superuser):
    lose_a_worker(None)
    remove_by_hand(None)
    boss = client_of(superuser)
    records = {record.status: record for record in TaskRecord.objects.all()}
    assert records["failed"].error == "Worker lost"
    assert records["cancelled"].message == "Removed by hand."
    pages = (TASKS, f"{TASKS}failures/", f"{TASKS}{records['failed'].pk}/change/")
    with translation.override("de"):
        for page in pages:
            content = boss.get(page).content.decode()
            assert "Worker verloren" in content, page
            assert "Worker lost" not in content, page
        content = boss.get(f"{TASKS}{records['cancelled'].pk}/change/").content.decode()
    assert "Removed by hand" not in content
    assert "Von Hand entfernt." in content


@pytest.mark.parametrize(
    ("scenario", "german"),
    [
        (click_without_permission, "boss hat die Berechtigung für „Archive selected projects“ seit dem Start verloren"),
        (delete_without_permission, "boss hat keine Berechtigung für „Delete selected ordinary projects“"),
        (rename_with_parameters_that_are_not_valid_any_more, "Die Angaben sind nicht mehr gültig: prefix:"),
        (click_on_locked_ones, "Gesperrt von somebody"),
        (click_on_odd_ones, "Das einzige Objekt ist fehlgeschlagen: LookupError: project"),
        (click_for_a_large_file, "Die Datei names.csv ist größer als 1"),
        (click_on_all_of_which_one_is_locked, "(gehalten von somebody)"),
        (lambda boss: run(retry_what_is_queued), "kann nicht wiederholt werden: sie ist noch nicht beendet."),
    ],
)
def test_texts_with_values_are_translated_as_well(client_of, superuser, settings, scenario, german):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_FILE_LIMIT": 1}
    boss = client_of(superuser)
    scenario(boss)
    record = TaskRecord.objects.filter(retry_of=None).earliest("pk")
    superuser.is_superuser = superuser.is_staff = True
    superuser.save()
    with translation.override("de"):
        page = html.unescape(boss.get(f"{TASKS}{record.pk}/change/").content.decode())
    assert german in page


@pytest.mark.parametrize(
    "text",
    ["", "boss hat recht", "Locked by", "Locked: ", "KeyError: 'Locked by x'", "a: b", "x" * 5_000, "%(holder)s"],
)
def test_a_text_of_a_project_stays_as_it_is(text):
    with translation.override("de"):
        assert translated(text) == text


def test_the_pattern_of_an_error_is_translated(client_of, superuser):
    click_without_permission(client_of(superuser))
    pattern = TaskRecord.objects.get().error_pattern
    assert pattern == "PermissionDenied: boss has lost the permission for … since the launch."
    with translation.override("de"):
        assert translated(pattern) == "PermissionDenied: boss hat die Berechtigung für „…“ seit dem Start verloren."


def test_a_translation_has_the_values_as_they_are():
    """Even if a value looks like a text of the package, or like a placeholder."""
    with translation.override("de"):
        assert translated("Locked by Locked by %(holder)s\n%s") == "Gesperrt von Locked by %(holder)s\n%s"
        assert translated("TaskAlreadyActive: The same task is already queued or running: %.") == (
            "TaskAlreadyActive: Dieselbe Aufgabe wartet oder läuft schon: %."
        )
        two = "A (held by x), B (held by y) and 3 more"
        assert "A (gehalten von x), B (gehalten von y) und 3 weitere" in translated(
            f"Locked: {two}. Wait until the locks are released, or cancel the task that holds them, then try again."
        )


def test_failures_of_one_cause_are_one_group_whoever_finds_them(client_of, superuser):
    for language in ("en", "de"):
        with translation.override(language):
            lose_a_worker(None)
    (group,) = client_of(superuser).get(f"{TASKS}failures/").context["summary"].groups
    assert (group.pattern, group.count) == ("Worker lost", 2)


def test_a_refusal_is_in_the_language_of_whoever_reads_it(manager):
    manager.add_conflict_ids("somebody", {"testapp.Project": {1}})
    with translation.override("de"), pytest.raises(TaskConflict) as refusal:
        AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
    with translation.override("de"):
        assert "Gesperrt" in str(refusal.value)
    with translation.override("en"):
        assert str(refusal.value).startswith("Locked: Project 1 (held by somebody). Wait")


def test_a_label_that_is_translated_lazily_is_shown_in_the_language_of_the_reader(client_of, superuser, manager):
    name = manager.launch_async_task(ADD, 1, label=LAZY)
    manager.update_progress(name, LAZY)
    record = TaskRecord.objects.get()
    assert (record.label, ActiveTask.objects.get().progress_message) == ("This field is required.",) * 2
    boss = client_of(superuser)
    with translation.override("de"):
        for page in (TASKS, f"{TASKS}{record.pk}/change/"):
            content = boss.get(page).content.decode()
            assert "Dieses Feld ist zwingend erforderlich." in content, page
            assert "This field is required." not in content, page
        request = RequestFactory().get("/", {"task_name": name})
        request.user = superuser
        answer = json.loads(AsyncManager.as_view()(request).content)
    assert answer["progress"] == "Dieses Feld ist zwingend erforderlich."
