"""Mails about tasks that took long."""

from __future__ import annotations

import re
from datetime import timedelta

import django
import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.core.mail.backends.smtp import EmailBackend
from django.utils import timezone, translation

from powercrud_dashboard.engine import mails
from powercrud_dashboard.engine.cleanup import Cleanup
from powercrud_dashboard.models import NoticePreference, TaskNotice, TaskObject, TaskRecord
from tests.testapp import tasks
from tests.workers import meanwhile, run_queue

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/powercrud_dashboard/taskrecord/"
GOOD = "tests.testapp.tasks.log_lines"


def send_by(settings, backend: str) -> None:
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": backend}}
    else:
        settings.EMAIL_BACKEND = backend


def send_by_silent_server(settings, timeout: float | None) -> None:
    """Send by Django's own backend, with this timeout in the project's settings."""
    timeouts.clear()
    send_by(settings, "tests.unit.test_mails.RecordingBackend")
    if django.VERSION >= (6, 1):
        settings.MAILERS["default"]["OPTIONS"] = {"host": "localhost", "timeout": timeout}
    else:
        settings.EMAIL_TIMEOUT = timeout


#: The timeouts with which mails were sent.
timeouts: list[float | None] = []


class RecordingBackend(EmailBackend):
    """Django's own, without a server."""

    def send_messages(self, email_messages: object) -> int:
        timeouts.append(self.timeout)
        return 1


class BrokenBackend:
    """A mail server that is away."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def send_messages(self, messages: object) -> int:
        raise ConnectionError("no mail server")


@pytest.fixture(autouse=True)
def with_settings(settings):
    def change(**values: object) -> None:
        settings.POWERCRUD_SETTINGS = {"DASHBOARD_MAIL_AFTER": 60, **values}

    change()
    return change


@pytest.fixture
def person(db) -> User:
    return User.objects.create_superuser("boss", "boss@example.com", "secret")


@pytest.fixture
def end(manager, person, record_of):
    """Launch tasks, some seconds ago, and run them as a worker does."""

    def end(*functions: object, ago: float = 120, user: object = person, **options: object) -> list[TaskRecord]:
        names = [manager.launch_async_task(function, user=user, **options) for function in functions]
        TaskRecord.objects.filter(task_name__in=names).update(created_at=timezone.now() - timedelta(seconds=ago))
        run_queue()
        return [record_of(name) for name in names]

    return end


def test_whoever_has_launched_a_long_task_gets_one_mail(end, with_settings):
    with_settings(DASHBOARD_BASE_URL="https://admin.example.com/")
    (record,) = end(GOOD, label="Re-price")
    assert mail.outbox == []  # not by the task itself
    assert mails.send_due() == 1
    assert mails.send_due() == 0
    (sent,) = mail.outbox
    assert (sent.subject, sent.to) == ("Re-price: completed", ["boss@example.com"])
    assert f"https://admin.example.com{LIST}{record.pk}/change/" in sent.body
    assert f"https://admin.example.com{LIST}notifications/" in sent.body
    # Who reads it may be in another time zone.
    assert re.findall(r"^(Launched|Ended): .+ [A-Z]{3}$", sent.body, re.M) == ["Launched", "Ended"]
    assert sent.extra_headers["Auto-Submitted"] == "auto-generated"
    # Nothing else was to be told.
    assert not TaskNotice.objects.exists()


def test_a_short_task_sends_none(end):
    end(GOOD, ago=10)
    assert mails.send_due() == 0


def test_without_the_setting_there_are_none(end, with_settings):
    with_settings(DASHBOARD_MAIL_AFTER=None)
    end(GOOD)
    assert not TaskNotice.objects.exists()
    assert mails.send_due() == 0


def test_a_failure_says_why(end):
    end(tasks.fail, label="Re-price")
    mails.send_due()
    assert mail.outbox[0].subject == "Re-price: failed"
    assert "it broke" in mail.outbox[0].body


def test_failed_objects_are_named(end):
    (record,) = end(GOOD, label="Re-price")
    TaskRecord.objects.update(failed_count=12, affected_count=20, model_labels="testapp.project")
    for number in range(12):
        TaskObject.objects.create(
            record=record,
            model_label="testapp.project",
            object_id=number,
            outcome="failed",
            error="no price",
            text=f"p{number}",
        )
    mails.send_due()
    assert mail.outbox[0].subject == "Re-price (20 projects): completed, 12 failed"
    assert "- p0: no price\n" in mail.outbox[0].body
    assert "- p9: no price\n- ...\n" in mail.outbox[0].body


def test_a_cancelled_task_sends_none(manager, person):
    name = manager.launch_async_task(GOOD, user=person)
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(seconds=120))
    manager.cancel_task(name, user=person)
    assert mails.send_due() == 0


def test_the_attempts_of_a_task_are_one_mail(end, manager):
    (record,) = end(tasks.fail, retry=1)
    assert record.status == "pending"
    assert mails.send_due() == 0
    manager.run_task_now(record.task_name)
    run_queue()
    assert mails.send_due() == 1


def test_the_tasks_of_a_group_are_one_mail_when_all_have_ended(end, manager, person, with_settings):
    with_settings(DASHBOARD_BASE_URL="https://example.com")
    end(GOOD, tasks.fail, group="chunks", label="Re-price")
    waiting = manager.launch_async_task(GOOD, user=person, group="chunks", label="Re-price")
    TaskRecord.objects.filter(task_name=waiting).update(created_at=timezone.now() - timedelta(seconds=120))
    assert mails.send_due() == 0
    run_queue()
    assert mails.send_due() == 1
    assert [sent.subject for sent in mail.outbox] == ["Re-price: 3 tasks ended, 1 failed"]
    assert f"https://example.com{LIST}groups/chunks/" in mail.outbox[0].body


@pytest.mark.parametrize(
    ("default", "chosen", "sent"),
    [(True, None, 1), (False, None, 0), (True, False, 0), (False, True, 1)],
)
def test_each_person_chooses(end, person, with_settings, default, chosen, sent):
    with_settings(DASHBOARD_MAIL_DEFAULT=default)
    if chosen is not None:
        NoticePreference.objects.create(user=person, mails=chosen)
    end(GOOD)
    assert mails.send_due() == sent
    assert not TaskNotice.objects.exists()


@pytest.mark.parametrize("change", [{"email": ""}, {"is_active": False}])
def test_nobody_without_an_address_or_an_account_gets_one(end, person, change):
    end(GOOD)
    User.objects.update(**change)
    assert mails.send_due() == 0
    assert not TaskNotice.objects.exists()


def test_a_mail_server_that_is_away_breaks_nothing_and_is_asked_again(end, settings, caplog):
    (record,) = end(GOOD)
    send_by(settings, f"{__name__}.BrokenBackend")
    assert mails.send_due() == 0
    assert "can't be sent now" in caplog.text
    assert record.status == "success"
    send_by(settings, "django.core.mail.backends.locmem.EmailBackend")
    assert mails.send_due() == 0  # not at once
    TaskNotice.objects.update(mail_due_at=timezone.now())
    assert mails.send_due() == 1


def test_after_a_day_it_is_too_late(end, settings):
    end(GOOD)
    send_by(settings, f"{__name__}.BrokenBackend")
    TaskNotice.objects.update(created_at=timezone.now() - timedelta(days=2))
    mails.send_due()
    assert not TaskNotice.objects.exists()


def test_two_processes_send_it_once(end):
    end(GOOD, GOOD)
    with meanwhile(mails.send_due, before='UPDATE "powercrud_dashboard_tasknotice"'):
        mails.send_due()
    assert len(mail.outbox) == 2


def test_the_tasks_of_others_in_a_group_keep_no_mail(end, manager, make_user):
    end(GOOD, GOOD, group="imports", label="Import")
    manager.launch_async_task(GOOD, user=make_user("other"), group="imports")
    assert mails.send_due() == 1
    assert mail.outbox[0].subject == "Import: 2 tasks ended"


@pytest.mark.parametrize("seen", ["page", "refresh", "tray"])
def test_a_page_that_is_left_open_keeps_no_mail(end, person, client_of, with_settings, seen):
    with_settings(DASHBOARD_NOTICES=True)
    (record,) = end(GOOD)
    browser = client_of(person)
    if seen == "tray":
        browser.post(f"{LIST}tray/seen/", {"newest": TaskNotice.objects.get().pk})
    else:
        headers = {"HX-Request": "true"} if seen == "refresh" else {}
        browser.get(f"{LIST}{record.pk}/change/", headers=headers)
    assert not TaskNotice.objects.filter(is_for_pages=True).exists()
    assert mails.send_due() == 1
    assert not TaskNotice.objects.exists()


def test_the_notice_for_the_pages_stays(end, with_settings):
    with_settings(DASHBOARD_NOTICES=True)
    end(GOOD)
    assert mails.send_due() == 1
    notice = TaskNotice.objects.get()
    assert (notice.mail_due_at, notice.told_by) == (None, "")
    assert mails.send_due() == 0


@pytest.mark.parametrize("own", [None, 3])
def test_a_mail_server_may_not_be_silent_for_ever(end, settings, own):
    send_by_silent_server(settings, own)
    end(GOOD)
    assert mails.send_due() == 1
    assert timeouts == [own or mails.SERVER_TIMEOUT]


def test_the_cleanup_sends_them_if_no_worker_does(end):
    end(GOOD)
    Cleanup(dry_run=True).run()
    assert mail.outbox == []
    Cleanup().run()
    assert len(mail.outbox) == 1


def test_it_is_in_the_language_of_the_click_and_leads_back_to_its_host(client_of, person, make_projects, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    projects = make_projects(2)
    with translation.override("en"):
        # The middleware leaves the language of the request active.
        client_of(person).post(
            "/admin/testapp/project/",
            {"action": "archive", "_selected_action": [project.pk for project in projects]},
            headers={"host": "back.example.com", "accept-language": "de"},
        )
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(seconds=120))
    run_queue()
    assert mails.send_due() == 1
    record = TaskRecord.objects.get()
    (sent,) = mail.outbox
    assert f"http://back.example.com{LIST}{record.pk}/change/" in sent.body
    # A date as Germans write it.
    assert re.search(r"\b\d{1,2}\. \w+ \d{4}", sent.body)


def test_without_a_known_address_there_is_no_link(end):
    end(GOOD)
    mails.send_due()
    assert "/admin/" not in mail.outbox[0].body


def test_labels_can_add_no_header_and_are_plain_text(end):
    end(GOOD, label="Re-price\nBcc: x@example.com & <b>")
    mails.send_due()
    assert mail.outbox[0].subject == "Re-price Bcc: x@example.com & <b>: completed"


def test_the_choice_is_made_on_a_page(client_of, person):
    client = client_of(person)
    page = client.get(f"{LIST}notifications/").content.decode()
    assert "after more than 1" in page
    assert "checked" in page
    client.post(f"{LIST}notifications/", {})
    assert not NoticePreference.objects.wants_mail(person)
    assert "checked" not in client.get(f"{LIST}notifications/").content.decode()
    client.post(f"{LIST}notifications/", {"mails": "on"})
    assert NoticePreference.objects.wants_mail(person)


def test_the_page_says_if_there_are_no_mails_or_no_address(boss, with_settings):
    assert "has no mail address" in boss.get(f"{LIST}notifications/").content.decode()
    with_settings(DASHBOARD_MAIL_AFTER=None)
    assert "sends no mails" in boss.get(f"{LIST}notifications/").content.decode()
