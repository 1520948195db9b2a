"""A project's ``Dashboard`` decides who may do what and what the pages show. That of tests/example/ is an instance."""

from __future__ import annotations

import logging
import threading

import pytest
from django.contrib.auth.models import Group
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.engine import alerts
from powercrud_dashboard.extension import Column, Dashboard
from powercrud_dashboard.models import Alert, TaskObject, TaskRecord
from tests.alerting import evaluate, is_quiet, open_alerts, past_alerts
from tests.example import checks
from tests.example.dashboard import PAYMENTS
from tests.example.dashboard import Dashboard as ExampleDashboard
from tests.services import wait_until

pytestmark = pytest.mark.django_db

NAME = "powercrud_dashboard_taskrecord_{}"
ADD = "tests.testapp.tasks.add"


def url(page: str, *args: object) -> str:
    return reverse(f"admin:{NAME.format(page)}", args=args)


def use(settings, path: object = "tests.example.dashboard.Dashboard") -> None:
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_CLASS": path}


@pytest.fixture
def example(settings) -> None:
    use(settings)


@pytest.fixture
def make_record():
    def make(user=None, *, func: str = ADD, status: str = "failed", **fields: object) -> TaskRecord:
        number = TaskRecord.objects.count() + 1
        who = {"user": user, "user_label": user.username} if user else {}
        resolution = {"resolution": "open"} if status == "failed" else {}
        defaults = {"label": f"task {number}", "affected_count": 0, "attempts": 1}
        return TaskRecord.objects.create(
            task_name=f"t{number}", func=func, status=status, **{**who, **resolution, **defaults, **fields}
        )

    return make


@pytest.fixture
def team(make_user):
    """Two people of one team, and one of none."""
    ann, bob, eve = make_user("ann"), make_user("bob"), make_user("eve")
    group = Group.objects.create(name="team")
    group.user_set.add(ann, bob)
    return ann, bob, eve


def labels_in(client, query: str = "") -> list[str]:
    return sorted(row.record.label for row in client.get(url("changelist") + query).context["table"]._task_rows)


# Who sees what


def test_the_rows_that_somebody_sees_are_the_projects_choice_everywhere(example, team, make_record, client_of):
    ann, bob, eve = team
    record = make_record(ann, group="g")
    assert TaskRecord.objects.visible_to(bob).get() == record
    assert not TaskRecord.objects.visible_to(eve).exists()
    pages = [url("change", record.pk), url("raw", record.pk), url("log", record.pk), url("group", "g")]
    assert labels_in(client_of(bob)) == [record.label]
    assert [client_of(bob).get(page).status_code for page in pages] == [200] * 4
    assert labels_in(client_of(eve)) == []
    assert [client_of(eve).get(page).status_code for page in pages] == [404] * 4


def test_without_the_setting_people_see_their_own(team, make_record, client_of):
    ann, bob, _eve = team
    record = make_record(ann)
    assert labels_in(client_of(ann)) == [record.label]
    assert client_of(bob).get(url("change", record.pk)).status_code == 404


class ForSuperusers(Dashboard):
    """Who may view all is a question of its own here, and what other people see leaves something out."""

    def may_view_all(self, user):
        return user.is_superuser

    def visible_tasks(self, tasks, user):
        return tasks.exclude(func=PAYMENTS)


def test_who_may_not_view_all_sees_neither_its_pages_nor_its_counts(
    settings, make_user, make_record, client_of, superuser
):
    use(settings, f"{__name__}.ForSuperusers")
    viewer = make_user("viewer", "view_taskrecord")
    records = [make_record(), make_record(func=PAYMENTS)]
    client = client_of(viewer)
    pages = [url(page) for page in ("insights", "cluster", "schedules", "alerts")]
    assert labels_in(client_of(superuser)) == sorted(record.label for record in records)
    assert [client_of(superuser).get(page).status_code for page in pages] == [200] * 4
    answer = client.get(url("changelist"))
    assert [row.record for row in answer.context["table"]._task_rows] == records[:1]
    assert [str(tab.count) for tab in answer.context["tabs"] if tab.status == "failed"] == ["1"]
    assert answer.context["pulse"] is None
    assert [client.get(page).status_code for page in pages] == [403] * 4
    assert client.get(url("change", records[1].pk)).status_code == 404


# Who may do what


def test_a_page_offers_and_its_address_does_what_the_project_allows(example, make_record, boss):
    ordinary, payment = make_record(), make_record(func=PAYMENTS)
    assert boss.get(url("change", ordinary.pk)).context["retry_url"]
    answer = boss.get(url("change", payment.pk))
    assert (answer.context["retry_url"], answer.context["edit_url"]) == ("", "")
    assert boss.post(url("retry", payment.pk)).status_code == 403
    assert boss.get(url("edit", payment.pk)).status_code == 403
    buttons = {
        row.record.label: [action.name for action in row.actions]
        for row in boss.get(url("changelist")).context["table"]._task_rows
    }
    assert "retry" in buttons[ordinary.label]
    assert "retry" not in buttons[payment.label]


@pytest.mark.parametrize("chosen", [{"all": "1", "filter": ""}, {"group": "status=failed"}, "ticked"])
def test_an_action_on_many_tasks_asks_for_each(example, make_record, boss, chosen):
    records = [make_record(), make_record(func=PAYMENTS)]
    data = {"selected": [record.pk for record in records]} if chosen == "ticked" else chosen
    page = boss.post(url("bulk"), {"action": "retry", **data})
    selection = page.context["selection"]
    assert selection.accepted == records[:1]
    assert selection.rejected == [(records[1], "you have no permission for it")]


def test_an_action_on_a_group_asks_for_each(example, manager, boss):
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(PAYMENTS, group="g", sync=True)
    answer = boss.post(url("group_action", "g", "retry"), follow=True)
    assert "you have no permission for it" in answer.content.decode()
    assert TaskRecord.objects.count() == 1


def test_what_is_allowed_for_one_task_is_not_offered_for_a_whole_list(example, team, make_record, client_of):
    ann, bob, eve = team
    record = make_record(ann, status="pending")
    client = client_of(bob)
    assert client.get(url("change", record.pk)).context["cancel_url"]
    assert client.post(url("bulk"), {"action": "cancel", "selected": [record.pk]}).context["selection"].accepted
    for_all = client.post(url("bulk"), {"action": "cancel", "all": "1", "filter": ""})
    assert for_all.context["selection"].accepted == []
    assert client_of(eve).post(url("cancel", record.pk), follow=True).context["table"].rows.data.data == []
    record.refresh_from_db()
    assert record.status == "pending"


def test_each_permission_has_its_method(settings, superuser, make_record):
    """All of them, so that none is forgotten."""
    asked: list[str] = []

    class Asked(Dashboard):
        def __getattribute__(self, name):
            if name.startswith("may_"):
                asked.append(name)
                return lambda *args: False
            return super().__getattribute__(name)

    globals()["Asked"] = Asked
    use(settings, f"{__name__}.Asked")
    record = make_record()
    for name in (name for name in dir(access) if name.startswith("may_") and name != "may_see"):
        more = ["delete"] if name == "may_change_messages" else []
        by_record = "record" in getattr(access, name).__annotations__
        assert getattr(access, name)(superuser, *([record] if by_record else more)) is False
    record.status = "pending"
    assert not access.may_cancel(superuser, record)
    assert not access.may_pause(superuser, record)
    record.resolution = "dismissed"
    assert not access.may_reopen(superuser, record)
    assert not access.has_permission(superuser, "change_taskrecord")
    assert not access.has_permission(superuser, "view_conflictlock")
    assert not TaskRecord.objects.visible_to(superuser).exists()
    assert set(asked) == {name for name in vars(Dashboard) if name.startswith("may_")}


def test_inactive_people_may_do_nothing_whatever_the_project_says(settings, make_user, make_record):
    class Open(Dashboard):
        def may_view_all(self, user):
            return True

        def may_retry(self, user, record=None):
            return True

    globals()["Open"] = Open
    use(settings, f"{__name__}.Open")
    user, record = make_user("gone", is_active=False), make_record()
    assert not access.may_retry(user, record)
    assert not TaskRecord.objects.visible_to(user).exists()


# How things are shown


def test_texts_of_the_project_are_on_the_pages(example, team, make_record, boss):
    ann, _bob, _eve = team
    objects = [{"model": "testapp.project", "id": "7", "text": "Mill"}]
    fields = {"task_args": [1, 2], "result": 3, "first_objects": objects, "affected_count": 1}
    record = make_record(ann, status="success", **fields)
    TaskObject.objects.create(record=record, model_label="testapp.project", object_id="7", text="Mill")
    listed = boss.get(url("changelist")).content.decode()
    assert "<span>Ann</span>" in listed
    assert "Mill (no. 7)" in listed
    page = boss.get(url("change", record.pk)).content.decode()
    for text in ("<dd>Ann</dd>", "Mill (no. 7)", "<p>1 and 2</p>", "It is <strong>3</strong>."):
        assert text in page
    assert f'<a href="/runbooks/{ADD}/">Runbook</a>' in page
    assert "Keyword arguments" not in page
    assert "Payments &amp; loads run at night." in boss.get(reverse("admin:index")).content.decode()


def test_the_list_has_the_projects_columns_and_filters(settings, make_record, boss):
    # A process keeps the form of a list without filters.
    assert 'name="customer"' not in boss.get(url("changelist")).content.decode()
    use(settings)
    make_record(label="first", task_kwargs={"customer": "<Acme>"})
    make_record(label="second", task_kwargs={"customer": "Bolt"})
    make_record(label="third")
    page = boss.get(url("changelist")).content.decode()
    assert all(f'<span class="pcrud-project-label">{label}</span>' in page for label in ("Customer", "Attempts"))
    assert "&lt;Acme&gt;</div>" in page
    assert labels_in(boss, "?customer=Bolt") == ["second"]
    filtered = boss.get(url("changelist") + "?customer=Bolt").context
    assert [(chip.label, chip.value) for chip in filtered["view"].listing.filter.chips()] == [("Customer", "Bolt")]
    assert [str(tab.count) for tab in filtered["tabs"] if tab.status == "failed"] == ["1"]
    assert 'name="customer"' in page


class Weather(Dashboard):
    """A column whose values are not the record's."""

    today = ["sunny"]
    columns = [Column("weather", "Weather", lambda record: Weather.today[0])]

    def user_text(self, record):
        return f"somebody when it is {self.today[0]}"


def test_a_changed_value_is_shown_although_rendered_rows_are_kept(settings, make_record, boss):
    use(settings, f"{__name__}.Weather")
    make_record()
    assert "sunny</div>" in boss.get(url("changelist")).content.decode()
    Weather.today[0] = "rainy"
    page = boss.get(url("changelist")).content.decode()
    assert "rainy</div>" in page
    assert "somebody when it is rainy" in page


def test_columns_need_no_query_of_their_own(settings, make_record, boss, django_assert_num_queries):
    for number in range(3):
        make_record(task_kwargs={"customer": f"c{number}"})
    boss.get(url("changelist"))
    with CaptureQueriesContext(connection) as without:
        boss.get(url("changelist"))
    use(settings)
    with django_assert_num_queries(len(without)):
        boss.get(url("changelist"))


class Broken(ExampleDashboard):
    """Everything that shows something fails."""

    columns = [ExampleDashboard.columns[0], Column("bad", "Bad", lambda record: 1 / 0)]

    def user_text(self, record):
        raise ValueError("user")

    def object_text(self, model_label, object_id, text):
        raise ValueError("object")

    def arguments_text(self, record):
        raise ValueError("arguments")

    def result_text(self, record):
        raise ValueError("result")

    def task_panel(self, record, request):
        raise ValueError("panel")

    def index_panel(self, request):
        raise ValueError("index")


def test_an_error_in_a_text_is_logged_and_the_default_is_shown(settings, team, make_record, boss, caplog):
    use(settings, f"{__name__}.Broken")
    record = make_record(team[0], status="success", task_args=[41, 2], result=3)
    with caplog.at_level(logging.ERROR, "powercrud_dashboard.dashboard.customized"):
        assert "<span>ann</span>" in boss.get(url("changelist")).content.decode()
        page = boss.get(url("change", record.pk)).content.decode()
        assert boss.get(reverse("admin:index")).status_code == 200
    assert "<dd>ann</dd>" in page
    assert "41" in page
    said = {str(logged.exc_info[1]) for logged in caplog.records if logged.exc_info}
    assert said == {"user", "division by zero", "arguments", "result", "panel", "index"}


class Refusing(Dashboard):
    def may_view_all(self, user):
        raise ValueError("may view all")

    def visible_tasks(self, tasks, user):
        raise ValueError("visible")


@pytest.mark.parametrize("dashboard", [f"{__name__}.Refusing", "nowhere.Dashboard"])
def test_an_error_in_a_permission_shows_nothing_and_breaks_no_page_of_the_project(
    settings, dashboard, client_of, make_user, make_projects, caplog
):
    use(settings, dashboard)
    make_projects(1)
    clerk = client_of(make_user("clerk", "view_project", "change_project"))
    for page in (reverse("admin:index"), reverse("admin:testapp_project_changelist")):
        answer = clerk.get(page)
        assert answer.status_code == 200
        assert "pcrud-panel" not in answer.content.decode()
        assert "A part of a page can't be shown" in caplog.text
        caplog.clear()
    clerk.raise_request_exception = False
    assert clerk.get(url("changelist")).status_code == 500


class TakesAName(Dashboard):
    filters = {"q": ExampleDashboard.filters["customer"]}


def test_a_filter_with_a_name_that_is_taken_is_refused(settings, boss):
    use(settings, f"{__name__}.TakesAName")
    with pytest.raises(ImproperlyConfigured, match="the name 'q'"):
        boss.get(url("changelist"))


# Mistakes


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere.Dashboard", "can't be imported: ModuleNotFoundError"),
        (("tests.example.dashboard.Dashboard",), "is not a dotted path"),
        (["tests.example.dashboard.Dashboard"], "is not a dotted path"),
        ("tests.example.dashboard.PAYMENTS", "is not a subclass of powercrud_dashboard.extension.Dashboard"),
    ],
)
def test_with_a_wrong_path_nothing_is_shown(settings, superuser, path, problem):
    use(settings, path)
    (message,) = [message for message in run_checks() if message.id == "powercrud_dashboard.E016"]
    assert problem in message.msg
    with pytest.raises(ImproperlyConfigured, match=problem):
        TaskRecord.objects.visible_to(superuser)


def test_a_path_that_can_be_used_is_no_mistake(example):
    assert [message for message in run_checks() if message.id == "powercrud_dashboard.E016"] == []


# Alerts


def use_checks(settings, *paths: str) -> None:
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": {"no_workers": None, "checks": list(paths)}}


@pytest.fixture
def mailboxes(settings):
    use_checks(settings, "tests.example.checks.mailboxes")
    yield checks.full
    checks.full.clear()
    checks.answers[0] = True


@pytest.mark.django_db(transaction=True)
def test_a_check_of_the_project_opens_and_ends_alerts(mailboxes, settings, boss):
    mailboxes += ["sales", "support"]
    evaluate()
    path = "tests.example.checks.mailboxes"
    assert open_alerts() == [("check", f"{path} sales"), ("check", f"{path} support")]
    assert "The mailbox sales is full." in boss.get(url("alerts")).content.decode()
    mailboxes.remove("sales")
    evaluate()
    assert past_alerts() == [("check", f"{path} sales")]
    # It can't be said whether that is over.
    checks.answers[0] = False
    evaluate()
    assert open_alerts() == [("check", f"{path} support")]
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": {"no_workers": None}}
    evaluate()
    assert open_alerts() == []
    assert Alert.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_check_that_does_not_end_holds_up_no_evaluation(mailboxes, settings, monkeypatch):
    silent, quick = "tests.example.checks.silent", "tests.example.checks.mailboxes"
    use_checks(settings, silent, quick)
    monkeypatch.setattr(alerts, "CHECK_TAKES", 0.1)
    mailboxes.append("sales")
    try:
        evaluate()
        assert ("check", f"{silent} answer") not in open_alerts()
        # It is not begun again as long as it has not ended.
        assert sum(silent in thread.name for thread in threading.enumerate()) == 1
    finally:
        checks.goes_on.set()
    monkeypatch.setattr(alerts, "CHECK_TAKES", 10)
    wait_until(is_quiet, "the check has ended")
    evaluate()
    assert open_alerts() == [("check", f"{quick} sales"), ("check", f"{silent} answer")]
    checks.goes_on.clear()


@pytest.mark.django_db(transaction=True)
def test_of_a_check_that_finds_ever_more_the_first_ones_count(mailboxes, settings, monkeypatch):
    monkeypatch.setattr(alerts, "FOUND_AT_MOST", 3)
    use_checks(settings, "tests.example.checks.endless")
    evaluate()
    assert len(open_alerts()) == 3


def test_a_wrong_path_of_a_check_is_reported(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": {"checks": ["nowhere.check"]}}
    (message,) = [message for message in run_checks() if message.id == "powercrud_dashboard.E014"]
    assert "'checks'" in message.msg
    assert "can't be imported" in message.hint
