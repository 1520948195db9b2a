"""Actions as projects have them: what they answer, how they are declared, and who calls them."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import models
from django.http import HttpResponse
from django.middleware.csrf import get_token
from django.test import Client
from django.test.utils import isolate_apps

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.exceptions import BrowserAnswer, ErrorAnswer, TaskAlreadyActive, TaskConflict
from powercrud_dashboard.models import TaskFile, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last, said
from tests.testapp.models import OrdinaryProject, Project
from tests.workers import database_refuses, deliver, run_queue

# A worker closes the connections that a function has left in a transaction.
pytestmark = pytest.mark.django_db(transaction=True)

ORDINARY = "/admin/testapp/ordinaryproject/"


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(2)


def names() -> set[str]:
    return set(Project.objects.values_list("name", flat=True))


def choose_ordinary(client, action, projects, **more):
    return choose(client, action, projects, ORDINARY, **{"reason": "none", **more})


# Answers


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("answer_with_a_page", "a page"),
        ("answer_with_a_template", "the page “Really?”"),
        ("answer_with_a_redirect", "a redirect to /elsewhere/"),
    ],
)
def test_what_only_a_browser_could_use_is_no_success(boss, projects, action, answer):
    choose_ordinary(boss, action, projects)
    with pytest.raises(BrowserAnswer, match=re.escape(answer)):
        deliver()
    assert last().status == "failed"
    assert "background_when" in last().error
    assert not TaskFile.objects.exists()


def test_in_the_request_the_answer_goes_to_the_browser(boss, projects, at_once):
    assert choose_ordinary(boss, "answer_with_a_page", projects).content == b"<p>Done</p>"
    assert last().status == "success"
    answer = choose(boss, "names_as_csv", projects)
    assert answer["Content-Disposition"] == 'attachment; filename="names.csv"'
    assert answer.content.split() == [b"project", b"0", b"project", b"1"]
    assert not TaskFile.objects.exists()


def test_an_empty_answer_is_none(boss, projects):
    choose_ordinary(boss, "answer_with_nothing", projects)
    deliver()
    assert (last().status, last().result) == ("success", None)


def test_an_answer_with_the_status_of_an_error_is_no_success(boss, projects):
    choose_ordinary(boss, "answer_with_an_error", projects)
    with pytest.raises(ErrorAnswer, match="502"):
        deliver()
    assert last().status == "failed"
    assert last().error == 'The action answered with an error: 502 {"error": "no connection"}'
    assert not TaskFile.objects.exists()


def test_a_file_name_in_an_unknown_encoding_costs_only_the_name(boss, projects, with_actions):
    @background_action()
    def answer(modeladmin, request, queryset):
        return HttpResponse("a;b", "text/csv", headers={"Content-Disposition": "attachment; filename*=odd''a.csv"})

    with_actions(answer)
    choose(boss, "answer", projects)
    deliver()
    assert last().result == {"file": "result.csv", "size": 3}


def test_the_body_of_the_request_can_be_read_like_a_file(boss, projects, with_actions):
    @background_action()
    def read(modeladmin, request, queryset):
        return request.read().decode() == request.body.decode() != ""

    with_actions(read)
    choose(boss, "read", projects)
    assert deliver() is True


def test_a_form_in_an_answer_to_the_browser_has_its_token(superuser, projects, at_once):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(superuser)
    token = get_token(browser.get(ORDINARY).wsgi_request)
    for _submitted in range(2):
        answer = choose_ordinary(browser, "answer_with_a_form", projects, csrfmiddlewaretoken=token)
        assert answer.status_code == 200
        token = answer.content.decode()


@pytest.mark.parametrize("error", [TaskConflict([]), TaskAlreadyActive("another")])
def test_an_error_of_the_action_in_the_request_is_not_taken_for_a_refusal(boss, projects, at_once, with_actions, error):
    @background_action()
    def launch_another(modeladmin, request, queryset):
        raise error

    with_actions(launch_another)
    (message,) = said(choose(boss, "launch_another", projects))
    assert message.startswith("“Launch another” failed: ")
    assert f"{TASKS}{last().pk}/change/" in message


# Two action bars, above the list and below it


@pytest.mark.parametrize(
    ("actions", "index"),
    [
        (["unarchive", ""], "0"),
        (["", "unarchive"], "1"),
        (["unarchive", "archive"], "0"),
        # As Django reads what no browser sends.
        (["archive", "unarchive"], "-1"),
        (["archive", "unarchive"], "9"),
        (["unarchive", "archive"], "odd"),
    ],
)
def test_the_action_of_the_bar_whose_button_was_pressed_is_launched(boss, projects, actions, index):
    Project.objects.update(archived=True)
    selected = [project.pk for project in projects]
    boss.post(CHANGELIST, {"action": actions, "index": index, "_selected_action": selected})
    assert last().status == "pending"
    deliver()
    assert not Project.objects.filter(archived=True).exists()


# Pages of their own


def test_an_action_with_a_page_of_its_own_shows_it_in_the_request(boss, projects):
    assert "Rename 2?" in choose_ordinary(boss, "ask_first", projects).content.decode()
    assert not TaskRecord.objects.exists()
    choose_ordinary(boss, "ask_first", projects, apply="yes", new_name="renamed")
    deliver()
    assert last().status == "success"
    assert names() == {"renamed"}


def test_a_formset_in_such_a_page_is_not_taken_for_an_editable_list(boss, projects):
    forms = {"form-TOTAL_FORMS": "1", "form-INITIAL_FORMS": "0", "form-0-name": "typed"}
    choose(boss, "take_forms", projects, "/admin/testapp/specialproject/", apply="yes", **forms)
    deliver()
    assert last().result == "typed"


def test_a_callable_may_decide(boss, projects):
    assert choose_ordinary(boss, "ask_if_told_so", projects).content == b"in the request"
    assert not TaskRecord.objects.exists()
    choose_ordinary(boss, "ask_if_told_so", projects, mode="later")
    assert TaskRecord.objects.get().status == "pending"


@pytest.mark.parametrize("options", [{"confirm": True}, {"task": "tests.testapp.tasks.add"}])
def test_the_option_is_for_pages_of_the_action_itself(options):
    with pytest.raises(ValueError, match="background_when"):
        BackgroundAction(name="x", description="X", background_when="apply", **options)


def test_delete_selected_has_its_page_and_its_log(boss, projects):
    page = choose_ordinary(boss, "delete_selected", projects).content.decode()
    assert "Are you sure" in page
    assert not TaskRecord.objects.exists()
    answer = choose_ordinary(boss, "delete_selected", projects, post="yes")
    assert "runs in the background" in said(answer)[0]
    assert Project.objects.count() == 2
    deliver()
    assert last().status == "success"
    assert not Project.objects.exists()
    assert LogEntry.objects.count() == 2
    assert "Successfully deleted 2" in last().events.get(event="log").message


# Declaring


@pytest.mark.parametrize("name", ["open", "closed"])
def test_actions_that_get_actions_makes_under_any_key(boss, projects, name):
    choose_ordinary(boss, f"mark_{name}", projects)
    assert last().label == f"Mark as {name}"
    deliver()
    assert last().status == "success"
    assert names() == {name}


@pytest.mark.parametrize(
    ("action", "description"),
    [
        ("described_later", "Described afterwards"),
        ("decorated_below", "From below"),
        ("decorated_above", "From above"),
    ],
)
def test_the_description_may_be_set_before_or_after(boss, projects, action, description):
    assert f'<option value="{action}">{description}</option>' in boss.get(ORDINARY).content.decode()
    choose_ordinary(boss, action, projects)
    assert last().label == description


@pytest.mark.parametrize("action", ["decorated_below", "decorated_above"])
def test_so_may_the_permissions(client_of, make_user, boss, projects, action):
    viewer = client_of(make_user("viewer", "view_ordinaryproject"))
    choose_ordinary(viewer, action, projects)
    assert not TaskRecord.objects.exists()
    editor = make_user("editor", "view_ordinaryproject", "change_ordinaryproject")
    choose_ordinary(client_of(editor), action, projects)
    editor.user_permissions.clear()
    with pytest.raises(PermissionDenied, match="lost the permission"):
        deliver()


def test_a_decorated_function_can_be_called(boss, projects):
    choose_ordinary(boss, "call_another", projects)
    deliver()
    assert last().result == 2
    assert names() == {"above"}
    assert TaskRecord.objects.count() == 1


def test_in_the_request_too(boss, projects, at_once):
    choose_ordinary(boss, "call_another", projects)
    assert names() == {"above"}
    assert TaskRecord.objects.count() == 1


def test_the_fields_of_action_form_pass_the_confirmation_page(boss, projects):
    page = choose_ordinary(boss, "note_reason", projects, reason="too old").content.decode()
    fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))
    del fields["csrfmiddlewaretoken"]
    boss.post(ORDINARY, fields)
    deliver()
    assert last().result == "too old"


def test_an_action_that_may_answer_with_a_page_is_named_by_a_check():
    model_admin = admin.site.get_model_admin(OrdinaryProject)
    messages = [message for message in model_admin.check() if message.id == "powercrud_dashboard.W021"]
    named = [re.findall("'(.*?)'", message.msg)[0] for message in messages]
    assert named == ["answer_with_a_template", "answer_with_a_redirect"]
    assert all("background_when" in message.hint for message in messages)


class SeatAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    actions = ["clean", "count"]

    @background_action
    def clean(self, request, queryset):
        pass

    @background_action(conflict=False)
    def count(self, request, queryset):
        pass


@isolate_apps("tests.testapp")
def test_a_lock_on_objects_without_a_single_key_is_an_error():
    class Seat(models.Model):
        pk = models.CompositePrimaryKey("row", "number")
        row = models.IntegerField()
        number = models.IntegerField()

        class Meta:
            app_label = "testapp"

        def __str__(self) -> str:
            return f"{self.row}/{self.number}"

    (message,) = [item for item in SeatAdmin(Seat, admin.site).check() if item.id == "powercrud_dashboard.E024"]
    assert "'clean'" in message.msg


def test_the_menu_has_no_action_whose_additional_permission_is_missing(rf, make_user):
    class Counting(BackgroundActionsMixin, admin.ModelAdmin):
        actions = ["count", "recount"]
        background_actions = [
            BackgroundAction(name="count", description="", permissions=["delete"]),
            BackgroundAction(name="recount", description="", permissions=["change"]),
        ]

        @admin.action(permissions=["view"])
        def count(self, request, queryset):
            pass

        @admin.action(permissions=["view"])
        def recount(self, request, queryset):
            pass

    request = rf.get("/")
    request.user = make_user("changer")
    request.user.user_permissions.add(Permission.objects.get(codename="change_project"))
    assert set(Counting(Project, admin.site).get_actions(request)) == {"recount"}


# A broker that takes no message


def test_a_click_with_files_or_skipped_objects_that_is_not_queued_leaves_its_record(boss, make_projects, manager):
    projects = make_projects(3)
    manager.add_conflict_ids("nightly", {"testapp.Project": [projects[0].pk]})
    upload = SimpleUploadedFile("notes.txt", b"read me")
    confirmed = {"pcrud-confirmed": "1", "pcrud-prefix": "a", "pcrud-notes": upload}
    with database_refuses('INSERT INTO "django_q_ormq"', 2):
        answers = [choose(boss, "archive_free_ones", projects), choose(boss, "rename", projects[1:], **confirmed)]
    for answer, record in zip(answers, TaskRecord.objects.order_by("pk"), strict=True):
        assert (record.status, record.failure_reason) == ("failed", "not_queued")
        assert "then retry the task" in said(answer)[0]
        boss.post(f"{TASKS}{record.pk}/retry/")
        run_queue()
    first, _second, *retries = TaskRecord.objects.order_by("pk")
    assert (first.skipped_count, first.objects_worked_on.filter(outcome="skipped").count()) == (1, 1)
    assert [retry.result for retry in retries] == [{"archived": 2}, {"count": None, "notes": "read me"}]


def test_a_group_that_is_not_queued_leaves_nothing_and_says_so(boss, make_projects):
    with database_refuses('INSERT INTO "django_q_ormq"', 1, after=1):
        answer = choose(boss, "visit_in_chunks", make_projects(4))
    assert not TaskRecord.objects.exists()
    assert "“Visit in chunks” was not launched: OperationalError" in said(answer)[0]
    assert "retry the task" not in said(answer)[0]
