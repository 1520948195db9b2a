"""What a click on a background action leads to: launched, asked, refused, at once."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone

from powercrud_dashboard.admin import BackgroundAction, background_action
from powercrud_dashboard.admin.running import run_action
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine.locks import ALL_OBJECTS
from powercrud_dashboard.exceptions import FileTooLarge, TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskFile, TaskObject, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last, said
from tests.testapp import tasks
from tests.testapp.admin import ODD, ProjectAdmin
from tests.testapp.models import Document, Project
from tests.workers import deliver

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(5)


def outcomes(record: TaskRecord) -> dict[str, str]:
    return dict(record.objects_worked_on.order_by("pk").values_list("text", "outcome"))


# Actions as they are


def test_a_function_is_run_in_the_background(boss, projects, at_once):
    Project.objects.update(archived=True)
    choose(boss, "unarchive", projects[:2])
    record = last()
    assert (record.label, record.result, record.affected_count) == ("Unarchive selected projects", 2, 2)
    assert list(Project.objects.filter(archived=False)) == projects[:2]


def test_an_action_of_another_package_is_wrapped_in_place(boss, projects, at_once):
    choose(boss, "count_rows", projects[:3])
    record = last()
    assert record.label == "Foreign count of projects"
    assert record.events.get(event="log").message == "There are 3 rows."


def test_the_body_gets_the_request_of_the_click(boss, projects, at_once):
    response = choose(boss, "peek", projects, f"{CHANGELIST}?archived__exact=0", extra="of the form")
    record = last()
    assert record.result == {"rows": 5, "path": f"{CHANGELIST}?archived__exact=0", "extra": "of the form"}
    log = record.events.get(event="log")
    assert (log.message, log.payload["level"]) == ("Only looking.", "warning")
    # And the person stays on the filtered page.
    assert response.redirect_chain == [(f"{CHANGELIST}?archived__exact=0", 302)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("action", "name", "content_type"),
    [("names_as_csv", "names.csv", "text/csv"), ("names_as_stream", "result.txt", "text/plain")],
)
def test_an_answer_with_content_is_kept_for_download(boss, make_user, client_of, projects, action, name, content_type):
    choose(boss, action, projects[:2])
    deliver()
    record, kept = last(), TaskFile.objects.get()
    assert record.result == {"file": name, "size": kept.size}
    address = f"{TASKS}{record.pk}/files/{kept.pk}/"
    assert address in boss.get(f"{TASKS}{record.pk}/change/").content.decode()
    answer = boss.get(address)
    assert answer.content.split() == [b"project", b"0", b"project", b"1"]
    assert answer["Content-Type"].startswith(content_type)
    assert answer["Content-Disposition"] == f'attachment; filename="{name}"'
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert client_of(make_user("stranger")).get(address).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_an_answer_that_is_too_large_fails_the_task_and_says_so(boss, projects, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_FILE_LIMIT": 15}
    choose(boss, "names_as_csv", projects)
    with pytest.raises(FileTooLarge, match=r"names\.csv is larger"):
        deliver()
    assert "DASHBOARD_FILE_LIMIT" in last().error
    assert not TaskFile.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_files_go_with_their_record(boss, projects):
    choose(boss, "names_as_csv", projects)
    deliver()
    assert TaskFile.objects.exists()
    boss.post(f"{TASKS}bulk/", {"action": "delete", "selected": last().pk, "confirmed": "yes"})
    assert not TaskFile.objects.exists()


# One object at a time


@pytest.fixture
def one_odd(projects):
    Project.objects.filter(pk=projects[1].pk).update(name=ODD)
    return projects


def test_each_object_is_on_its_own(boss, one_odd, at_once):
    choose(boss, "visit", one_odd)
    record = last()
    assert (record.status, record.result) == ("success", {"done": 4, "failed": 1, "skipped": 0})
    assert (record.done_count, record.failed_count) == (4, 1)
    assert outcomes(record) == {
        "project 0": "done",
        ODD: "failed",
        "project 2": "done",
        "project 3": "done",
        "project 4": "done",
    }
    assert record.objects_worked_on.get(outcome="failed").error == f"LookupError: project {one_odd[1].pk} is odd"
    # What the failing one had written is undone.
    assert Project.objects.filter(archived=True).count() == 4
    page = boss.get(f"{TASKS}{record.pk}/change/").content.decode()
    in_timeline = re.findall(r'pcrud-event-name">(.*?)<', page)
    assert [name for name in in_timeline if "Completed" in name] == ["Completed with errors"]
    assert "is odd" in page


def test_if_all_fail_the_task_has_failed(boss, one_odd, at_once):
    answer = choose(boss, "visit", one_odd[1:2])
    assert "“Visit each” failed: The only object failed" in said(answer)[0]
    record = last()
    assert (record.status, record.failed_count) == ("failed", 1)
    assert "The only object failed: LookupError" in record.error
    assert not ConflictLock.objects.exists()


def test_objects_that_are_gone_or_forbidden_are_skipped(projects, superuser, monkeypatch, manager, record_of):
    from tests.testapp.admin import ProjectAdmin

    forbidden = projects[0].pk
    monkeypatch.setattr(
        ProjectAdmin, "has_change_permission", lambda self, request, obj=None: obj is None or obj.pk != forbidden
    )
    Project.objects.filter(pk=projects[1].pk).delete()
    name = manager.launch_async_task(
        run_action,
        by_object=True,
        object_ids={"testapp.Project": projects[:3]},
        sync=True,
        site_name="admin",
        model="testapp.project",
        action_name="visit",
        user_pk=superuser.pk,
        pks=[project.pk for project in projects[:3]],
    )
    record = record_of(name)
    assert (record.done_count, record.skipped_count) == (1, 2)
    errors = dict(record.objects_worked_on.values_list("object_id", "error"))
    assert errors == {
        str(forbidden): "No permission",
        str(projects[1].pk): "Deleted, or not visible to the user",
        str(projects[2].pk): "",
    }


def test_what_was_locked_at_the_click_is_on_the_record(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:2]})
    response = choose(boss, "visit", projects)
    record = last()
    assert "2 locked objects were skipped." in said(response)[1]
    assert (record.affected_count, record.skipped_count) == (3, 2)
    skipped = record.objects_worked_on.filter(outcome="skipped")
    assert {entry.object_id: entry.error for entry in skipped} == {
        str(project.pk): "Locked by nightly" for project in projects[:2]
    }
    # By name, also if only their keys were known.
    assert [str(entry) for entry in skipped.order_by("pk")] == ["project 0", "project 1"]


def test_the_failed_objects_alone_are_retried(boss, one_odd, at_once):
    choose(boss, "visit", one_odd)
    first = last()
    address = f"{TASKS}{first.pk}/retry-objects/"
    assert address in boss.get(f"{TASKS}{first.pk}/change/").content.decode()
    Project.objects.filter(name=ODD).update(name="mended", archived=False)
    Project.objects.exclude(name="mended").update(archived=False)
    boss.post(address)
    retry = last()
    assert retry.retry_of == first
    assert (retry.status, retry.affected_count, outcomes(retry)) == ("success", 1, {"mended": "done"})
    assert list(Project.objects.filter(archived=True)) == [one_odd[1]]
    assert "Only for some of the objects" in boss.get(f"{TASKS}{first.pk}/change/").content.decode()
    page = boss.get(f"{TASKS}{retry.pk}/change/").content.decode()
    assert "/retry-objects/" not in page
    # Its arguments name all of them.
    assert "Only for some of the objects" in page


def test_objects_of_a_task_that_was_cancelled_in_the_queue_were_not_reached(boss, projects, manager):
    choose(boss, "archive", projects[:2])
    manager.cancel_task(last().task_name)
    assert set(outcomes(last()).values()) == {"not_reached"}


def test_outcomes_beyond_the_limit_are_counted(boss, projects, settings):
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False, "DASHBOARD_OBJECT_LIMIT": 2}
    choose(boss, "visit", projects)
    record = last()
    assert (record.affected_count, record.done_count, TaskObject.objects.count()) == (5, 5, 2)


# Parameters and confirmation


def test_a_form_asks_first_and_shows_what_is_locked(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    page = choose(boss, "rename", projects)
    assert page.templates[0].name == "powercrud_dashboard/admin/confirm.html"
    text = page.content.decode()
    assert "5 objects are selected:" in text
    assert "1 object is locked. The action can't run until the lock is released:" in text
    # The object has a name here, where of its lock only the key is known.
    assert "project 0, locked by “nightly”" in text
    assert not TaskRecord.objects.exists()


def test_many_locks_of_one_holder_are_folded(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:4]})
    manager.add_conflict_ids("one more", {"testapp.Project": projects[4:]})
    text = choose(boss, "rename", projects).content.decode()
    assert "<summary>4 objects, locked by “nightly”</summary>" in text
    assert text.count("locked by “nightly”") == 1
    assert "<li>project 3</li>" in text[text.index("nightly") :]
    assert "project 4, locked by “one more”" in text


def test_the_form_has_what_widgets_of_the_admin_need_and_marks_what_is_required(boss, projects):
    text = choose(boss, "rename", projects).content.decode()
    assert text.index("/admin/jsi18n/") < text.index("/admin/js/core.js")
    assert '<div class="pcrud-required"><label for="id_pcrud-prefix">' in text
    assert '<div><label for="id_pcrud-notes">' in text


def test_bad_input_is_shown_again_and_launches_nothing(boss, projects):
    page = choose(
        boss,
        "rename",
        projects,
        **{"pcrud-confirmed": "1", "pcrud-prefix": "far too long a prefix", "pcrud-count": "0"},
    )
    errors = page.context["form"].errors
    assert set(errors) == {"prefix", "count"}
    assert 'value="far too long a prefix"' in page.content.decode()
    assert not TaskRecord.objects.exists()


def test_good_input_reaches_the_action_with_its_file(boss, projects, at_once):
    notes = SimpleUploadedFile("notes.txt", b"read me", "text/plain")
    fields = {"pcrud-confirmed": "1", "pcrud-prefix": "new", "pcrud-count": "7", "pcrud-notes": notes}
    choose(boss, "rename", projects[:1], **fields)
    assert last().result == {"count": 7, "notes": "read me"}
    assert Project.objects.get(pk=projects[0].pk).name == "new project 0"


def upload(client, rows, content: bytes = b"read me") -> TaskRecord:
    notes = SimpleUploadedFile("notes.txt", content, "text/plain")
    choose(client, "rename", rows, **{"pcrud-confirmed": "1", "pcrud-prefix": "new", "pcrud-notes": notes})
    return last()


@pytest.mark.parametrize("status", ["success", "failed", "cancelled"])
def test_an_ended_task_is_retried_with_its_files(boss, projects, at_once, manager, status):
    record = upload(boss, projects[:1])
    TaskRecord.objects.filter(pk=record.pk).update(status=status)
    TaskFile.objects.update(created_at=timezone.now() - timedelta(days=1))
    manager.cleanup_completed_tasks()
    boss.post(f"{TASKS}{record.pk}/retry/", {"confirmed": "yes"})
    retry = last()
    assert (retry.retry_of, retry.status, retry.result["notes"]) == (record, "success", "read me")


def test_the_files_are_deleted_with_the_record(boss, projects, at_once, manager):
    record = upload(boss, projects[:1])
    manager.retry_task(record.task_name)
    retry = last()
    boss.post(f"{TASKS}{record.pk}/delete/", {"post": "yes"})
    assert not TaskFile.objects.exists()
    with pytest.raises(LookupError, match="The uploaded files no longer exist"):
        manager.retry_task(retry.task_name)


def test_uploads_of_a_launch_that_failed_are_cleaned_up(boss, projects, manager):
    upload(boss, projects[:1])
    ActiveTask.objects.all().delete()
    TaskRecord.objects.all().delete()
    manager.cleanup_completed_tasks()
    # It may belong to a click whose task is not launched yet.
    assert TaskFile.objects.exists()
    TaskFile.objects.update(created_at=timezone.now() - timedelta(hours=2))
    manager.cleanup_completed_tasks()
    assert not TaskFile.objects.exists()


def test_a_file_that_is_too_large_is_an_error_of_its_field_and_the_rest_is_kept(boss, projects, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_FILE_LIMIT": 3}
    notes = SimpleUploadedFile("notes.txt", b"read me", "text/plain")
    fields = {"pcrud-confirmed": "1", "pcrud-prefix": "new", "pcrud-notes": notes}
    form = choose(boss, "rename", projects[:1], **fields).context["form"]
    assert list(form.errors) == ["notes"]
    assert "is larger than 3" in form.errors["notes"][0]
    assert form["prefix"].value() == "new"
    assert not TaskRecord.objects.exists()


def test_a_file_of_no_form_that_is_too_large_launches_nothing(boss, projects, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_FILE_LIMIT": 3}
    answer = choose(boss, "peek", projects, notes=SimpleUploadedFile("notes.txt", b"read me", "text/plain"))
    assert "notes.txt is larger" in said(answer)[0]
    assert not TaskRecord.objects.exists()
    assert not TaskFile.objects.exists()


def test_a_form_for_a_task_function_by_object(boss, projects, at_once):
    choose(boss, "mark_each", projects[:2], **{"pcrud-confirmed": "1", "pcrud-prefix": "*"})
    assert [project.name for project in Project.objects.order_by("pk")[:3]] == ["*project 0", "*project 1", "project 2"]


def test_a_confirmation_without_a_form(boss, projects, at_once):
    page = choose(boss, "archive_after_all", projects)
    assert "5 objects are selected:" in page.content.decode()
    assert not Project.objects.filter(archived=True).exists()
    choose(boss, "archive_after_all", projects, **{"pcrud-confirmed": "1"})
    assert Project.objects.filter(archived=True).count() == 5


def test_what_is_not_valid_any_more_in_the_worker_fails_the_task(superuser, projects):
    with pytest.raises(Exception, match="no longer valid: prefix"):
        run_action(
            site_name="admin",
            model="testapp.project",
            action_name="rename",
            user_pk=superuser.pk,
            pks=[projects[0].pk],
            post={"pcrud-prefix": [""]},
        )


# Locks


def test_an_action_without_conflicts_locks_nothing_but_names_its_objects(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects})
    choose(boss, "peek", projects)
    assert last().objects_worked_on.count() == 5
    assert ConflictLock.objects.exclude(active_task__task_name="nightly").count() == 0


def test_a_whole_model_is_locked_for_everybody(boss, projects, manager):
    choose(boss, "audit", projects[:1])
    assert [str(lock) for lock in ConflictLock.objects.all()] == ["testapp.project (all objects)"]
    assert last().affected_count == 1
    assert manager.check_conflict({"testapp.Project": {projects[3].pk, 99_999}}) == {projects[3].pk, 99_999}
    assert not manager.add_conflict_ids("nightly", {"testapp.SpecialProject": {projects[4].pk}})
    answer = choose(boss, "archive", projects[4:])
    assert "was not launched" in said(answer)[0]


def test_and_waits_for_nobody(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    answer = choose(boss, "audit", projects[1:])
    assert "some are locked by nightly" in said(answer)[0]
    assert not TaskRecord.objects.exists()


def test_a_whole_model_is_locked_from_code_as_well(manager, projects):
    assert manager.add_conflict_ids("audit", {"testapp.Project": ALL_OBJECTS})
    somebody_else = DashboardAsyncManager()
    with pytest.raises(TaskConflict, match=r"testapp\.project \(all objects\) \(held by audit\)"):
        somebody_else.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {projects[0].pk}})
    assert manager.remove_conflict_ids("audit") == 1
    assert manager.add_conflict_ids("one", {"testapp.Project": {projects[0].pk}})


def test_who_has_reserved_a_whole_model_hands_it_to_the_task(manager, projects):
    manager.add_conflict_ids("audit", {"testapp.Project": ALL_OBJECTS})
    manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": ALL_OBJECTS})
    assert ConflictLock.objects.get().active_task.task_name == last().task_name
    assert last().objects_worked_on.count() == 0


# Twice, and now or later


def test_the_same_click_twice_launches_once(boss, projects):
    choose(boss, "peek", projects)
    answer = choose(boss, "peek", list(reversed(projects)))
    first = TaskRecord.objects.get()
    assert "is already queued or running for this selection." in said(answer)[0]
    assert f"{TASKS}{first.pk}/change/" in said(answer)[0]
    choose(boss, "peek", projects[:2])
    assert TaskRecord.objects.count() == 2


def test_with_locks_it_is_told_so_and_not_as_a_conflict(boss, projects):
    choose(boss, "archive", projects)
    assert "is already queued or running" in said(choose(boss, "archive", projects))[0]


def test_the_same_group_twice_launches_once(boss, projects):
    choose(boss, "visit_in_chunks", projects)
    answer = choose(boss, "visit_in_chunks", projects)
    assert "is already queued or running" in said(answer)[0]
    assert "/groups/" in said(answer)[0]
    assert TaskRecord.objects.count() == 3


def test_other_parameters_are_another_task(boss, projects, at_once):
    for prefix in ("a", "b"):
        choose(boss, "mark_each", projects[:1], **{"pcrud-confirmed": "1", "pcrud-prefix": prefix})
    assert Project.objects.get(pk=projects[0].pk).name == "baproject 0"


def test_after_its_end_it_is_launched_anew(boss, projects, at_once):
    for _click in range(2):
        choose(boss, "peek", projects)
    assert TaskRecord.objects.filter(status="success").count() == 2


def test_small_selections_run_at_once_and_are_recorded(boss, projects):
    answer = choose(boss, "archive_few_at_once", projects[:2])
    record = last()
    assert record.status == "success"
    assert [event.event for event in record.events.all()] == ["create", "start", "log", "complete", "cleanup"]
    assert "has finished for 2 objects." in said(answer)[0]
    assert said(answer)[1] == "That was quick."
    choose(boss, "archive_few_at_once", projects[2:])
    assert last().status == "pending"


def test_an_error_at_once_is_a_message_with_a_link_to_the_record(boss, one_odd):
    answer = choose(boss, "archive_few_at_once", one_odd[1:2])
    record = last()
    assert record.status == "failed"
    assert "failed: " in said(answer)[0]
    assert f"{TASKS}{record.pk}/change/" in said(answer)[0]


# Keys and sites of all kinds


def test_a_proxys_rows_are_those_of_its_model(boss, projects):
    choose(boss, "archive", projects[:1], "/admin/testapp/specialproject/")
    assert ConflictLock.objects.get().model_label == "testapp.project"
    assert "was not launched" in said(choose(boss, "visit_in_chunks", projects[:1]))[0]


def test_keys_that_are_no_numbers(boss, at_once):
    documents = [Document.objects.create(id=uuid.UUID(int=number)) for number in (1, 2)]
    choose(boss, "visit", documents, "/admin/testapp/document/")
    assert set(outcomes(last()).values()) == {"done"}
    assert {entry.object_id for entry in TaskObject.objects.all()} == {str(document.pk) for document in documents}


@pytest.mark.django_db(transaction=True)
def test_an_export_of_django_import_export_runs_in_the_background(boss):
    documents = [Document.objects.create(id=uuid.UUID(int=number)) for number in (1, 2)]
    choose(boss, "export_admin_action", documents, "/admin/testapp/document/")
    deliver()
    record = last()
    assert record.label == "Export selected documents"
    content = bytes(TaskFile.objects.get().content).decode()
    assert [line.split(",")[0] for line in content.split()] == ["id", str(documents[0].pk), str(documents[1].pk)]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"on_conflict": "ignore"}, "use 'abort' or 'skip'"),
        ({"conflict": "all"}, "use True, False or 'model'"),
        ({"conflict": "model", "on_conflict": "skip"}, "can't be combined with on_conflict"),
        ({"conflict": "model", "chunk_size": 5}, "can't be combined with chunk_size"),
        ({"chunk_size": 0}, "at least 1"),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        background_action(**options)(lambda modeladmin, request, queryset: None)
    with pytest.raises(ValueError, match=complaint):
        BackgroundAction(name="x", description="X", **options)


def test_the_decorator_works_without_arguments():
    @background_action
    def tidy_up(modeladmin, request, queryset):
        """Do nothing."""

    assert tidy_up.background_action.description == "Tidy up"


@pytest.mark.parametrize("action", ["archive", "peek", "audit"])
def test_rows_that_no_longer_exist_are_not_called_locked(boss, make_projects, action):
    (project,) = make_projects(1)
    Project.objects.all().delete()
    (message,) = said(choose(boss, action, [project]))
    assert message == "The selected objects no longer exist, or you may not view them."


def test_a_refusal_takes_few_queries_however_many_tasks_hold_the_objects(
    boss, make_projects, manager, django_assert_max_num_queries
):
    projects = make_projects(30)
    for project in projects:
        manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": [project.pk]})
    with django_assert_max_num_queries(40):
        choose(boss, "archive", projects)


def test_fields_of_list_editable_are_no_parameters(boss, make_projects, monkeypatch):
    monkeypatch.setattr(ProjectAdmin, "list_editable", ["archived"])
    (project,) = make_projects(1)
    choose(boss, "archive", [project], **{"form-TOTAL_FORMS": "1", "form-0-archived": "on", "extra": "1"})
    assert last().task_kwargs["post"] == {"extra": ["1"]}
