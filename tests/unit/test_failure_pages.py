"""What the pages show of settled failures, and how failures are retried, dismissed and reopened there."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.http import QueryDict
from django.utils import timezone

from powercrud_dashboard.dashboard import selection
from powercrud_dashboard.models import TaskRecord, TaskStatus
from tests.clicks import said
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
BULK = f"{LIST}bulk/"
FAILURES = f"{LIST}failures/"


@pytest.fixture
def fail(manager, record_of):
    def launch_and_fail(name: str, error: str = "it broke", **more) -> TaskRecord:
        manager.launch_async_task(tasks.add, 1, task_key=name, label=name, **more)
        end(manager, name, "fail", error=error, exception_class="builtins.ValueError")
        return record_of(name)

    return launch_and_fail


def end(manager, name: str, event: str = "complete", **payload) -> None:
    manager.async_task_lifecycle("start", name, attempt=1)
    manager.async_task_lifecycle(event, name, **payload)
    manager.remove_active_task(name)


@pytest.fixture
def settled(manager, fail, superuser) -> dict[str, TaskRecord]:
    """A failure of each kind, of which one was tried again and failed again."""
    for name in ("open", "resolved", "dismissed", "earlier"):
        fail(name)
    end(manager, manager.retry_task("resolved"))
    end(manager, manager.retry_task("earlier"), "fail", error="it broke", exception_class="builtins.ValueError")
    manager.dismiss_failure("dismissed", superuser, "known outage")
    return {record.task_name: record for record in TaskRecord.objects.all()}


def rows(response) -> list[str]:
    return [
        row.record.task_name if len(row.record.task_name) < 20 else "retry"
        for row in response.context["table"]._task_rows
    ]


def counts(response) -> dict[str, str]:
    return {str(tab.label): str(tab.count) for tab in response.context["tabs"]}


def words(response) -> str:
    text = re.sub(r"<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", text)


def post(client, address: str, **data):
    return client.post(address, data, follow=True)


# The list


@pytest.mark.parametrize("search", ["", "&q=broke", "&within=24h", "&longer_than=0"])
def test_only_open_failures_are_listed_and_counted_as_failed(boss, settled, search):
    if search == "&longer_than=0":
        TaskRecord.objects.update(run_time=timedelta(seconds=1))
    shown = boss.get(f"{LIST}?status=failed{search}")
    assert sorted(rows(shown)) == ["open", "retry"]
    assert counts(shown)["Failed"] == "2"
    everything = {"": "6", "&q=broke": "5", "&within=24h": "6", "&longer_than=0": "6"}
    assert counts(boss.get(f"{LIST}?{search[1:]}"))["All"] == everything[search]


@pytest.mark.parametrize("search", ["", "&q=broke"])
@pytest.mark.parametrize(
    ("resolution", "names"),
    [
        ("open", ["open", "retry"]),
        ("resolved", ["resolved"]),
        ("dismissed", ["dismissed"]),
        ("all", ["dismissed", "earlier", "open", "resolved", "retry"]),
    ],
)
def test_the_others_are_chosen_by_their_resolution(boss, settled, resolution, names, search):
    shown = boss.get(f"{LIST}?status=failed&resolution={resolution}{search}")
    assert sorted(rows(shown)) == names
    assert counts(shown)["Failed"] == str(len(names))
    assert counts(boss.get(f"{LIST}?status=success&resolution={resolution}{search}"))["Failed"] == str(len(names))
    assert f"Failures: {dict(shown.context['filter'].form.fields['resolution'].choices)[resolution]}" in words(shown)


def test_what_became_of_a_failure_is_told_in_words(boss, settled):
    TaskRecord.objects.filter(task_name="resolved").update(
        finished_at=timezone.now() - timedelta(minutes=5), resolution_at=timezone.now()
    )
    page = words(boss.get(f"{LIST}?status=failed&resolution=all")).replace("\N{NO-BREAK SPACE}", " ")
    assert "resolved by a retry 5 min later" in page
    assert "dismissed by boss: known outage" in page
    assert "a later try failed, too" in page
    page = words(boss.get(f"{LIST}{settled['dismissed'].pk}/change/"))
    assert "dismissed by boss: known outage" in page
    assert "Dismissed by boss known outage" in page


def test_a_failure_whose_retry_is_under_way_says_so_and_offers_no_second(boss, fail, manager, record_of):
    failed = fail("failed")
    again = record_of(manager.retry_task("failed"))
    for address in (f"{LIST}?status=failed", f"{LIST}{failed.pk}/change/"):
        page = boss.get(address).content.decode()
        assert f'href="{LIST}{again.pk}/change/">A retry is under way' in page
        assert f"{failed.pk}/retry/" not in page
    (group,) = boss.get(FAILURES).context["summary"].groups
    assert (group.count, group.retried) == (1, 1)
    assert "1 being retried" in words(boss.get(FAILURES))


def test_the_panel_counts_open_failures_and_leads_to_their_causes(boss, settled):
    page = boss.get("/admin/").content.decode()
    assert f'href="{FAILURES}"' in page
    assert re.search(r"</span>2</span>\s*Failed in the last 24 hours", page)


def test_deleting_all_tasks_includes_the_settled_ones(boss, settled):
    post(boss, BULK, action="delete", all="1", confirmed="yes")
    assert not TaskRecord.objects.exists()


# Dismiss and reopen


def test_a_failure_is_dismissed_and_reopened_on_its_page(client_of, make_user, fail):
    failed = fail("failed")
    client = client_of(make_user("anna", "view_taskrecord", "dismiss_taskrecord"))
    page = client.get(f"{LIST}{failed.pk}/change/").content.decode()
    assert f"{failed.pk}/dismiss/" in page
    assert f"{failed.pk}/reopen/" not in page
    assert said(client.post(f"{LIST}{failed.pk}/dismiss/", {"note": " no need "})) == ["The failure was dismissed."]
    failed.refresh_from_db()
    assert (failed.resolution, failed.resolution_note) == ("dismissed", "no need")
    assert said(client.post(f"{LIST}{failed.pk}/dismiss/"))[-1] == "The task is no open failure."
    assert f"{failed.pk}/reopen/" in client.get(f"{LIST}{failed.pk}/change/").content.decode()
    assert said(client.post(f"{LIST}{failed.pk}/reopen/"))[-1] == "The failure is open again."
    assert said(client.post(f"{LIST}{failed.pk}/reopen/"))[-1] == "The failure was not dismissed."


def test_it_takes_a_permission_or_the_task_is_ones_own(client_of, make_user, fail, settings):
    viewer = make_user("viewer", "view_taskrecord", "retry_taskrecord")
    own, others = fail("own", user=viewer), fail("others")
    client = client_of(viewer)
    assert client.post(f"{LIST}{others.pk}/dismiss/").status_code == 403
    assert client.post(f"{LIST}{own.pk}/dismiss/").status_code == 302
    assert client.post(f"{LIST}{own.pk}/reopen/").status_code == 302
    post(client, BULK, action="dismiss", selected=[own.pk, others.pk], confirmed="yes")
    assert list(TaskRecord.objects.values_list("resolution", flat=True).order_by("task_name")) == ["open", "dismissed"]
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_MANAGE_OWN_TASKS": False}
    assert client.post(f"{LIST}{own.pk}/reopen/").status_code == 403


def test_failures_are_dismissed_in_bulk_with_one_note_and_reopened(boss, settled):
    question = post(boss, BULK, action="dismiss", all="1", filter="status=failed")
    assert 'name="note"' in question.content.decode()
    done = post(boss, BULK, action="dismiss", all="1", filter="status=failed", confirmed="yes", note="all known")
    assert "Dismiss: 2 tasks." in words(done)
    assert TaskRecord.objects.filter(resolution="dismissed", resolution_note="all known").count() == 3
    assert not TaskRecord.objects.open_failures().exists()
    done = post(boss, BULK, action="reopen", all="1", filter="status=failed&resolution=dismissed", confirmed="yes")
    assert "Reopen: 3 tasks." in words(done)
    assert "not changed" not in words(done)
    assert TaskRecord.objects.open_failures().count() == 3


def test_the_buttons_of_a_list_are_those_for_its_tasks(boss, settled):
    def offered(query: str) -> list[str]:
        return re.findall(r'id="pcrud-bulk-(\w+)"', boss.get(f"{LIST}?{query}").content.decode())

    assert {"retry", "dismiss", "delete"} <= set(offered("status=failed"))
    assert not {"cancel", "run_again", "reopen"} & set(offered("status=failed"))
    assert {"reopen", "retry"} <= set(offered("status=failed&resolution=dismissed"))
    assert not {"dismiss"} & set(offered("status=failed&resolution=dismissed"))
    assert {"run_again", "delete"} <= set(offered("status=success"))
    assert not {"retry", "cancel", "dismiss"} & set(offered("status=success"))
    assert {"retry", "cancel", "delete"} <= set(offered(""))


# Retry


def test_a_second_retry_all_does_nothing_twice(boss, fail, manager):
    for name in ("one", "two"):
        fail(name)
    everything = {"action": "retry", "all": "1", "filter": "status=failed", "confirmed": "yes"}
    assert "Retry: 2 tasks." in words(post(boss, BULK, **everything))
    assert "Retry: 2 tasks." not in words(post(boss, BULK, **everything))
    for record in TaskRecord.objects.exclude(retry_of=None):
        end(manager, record.task_name)
    post(boss, BULK, **everything)
    post(boss, BULK, **{**everything, "filter": "status=failed&resolution=all"})
    post(boss, BULK, **{**everything, "filter": ""})
    assert TaskRecord.objects.count() == 4


def test_a_cancelled_task_whose_retry_has_completed_is_not_retried_with_the_others(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    manager.cancel_task(name)
    end(manager, manager.retry_task(name))
    post(boss, BULK, action="retry", all="1", filter="status=cancelled", confirmed="yes")
    assert TaskRecord.objects.count() == 2


def test_a_ticked_task_of_which_a_later_try_has_completed_is_not_done_a_second_time(boss, manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    manager.cancel_task(name)
    end(manager, manager.retry_task(name))
    ticked = {"action": "retry", "selected": [record_of(name).pk]}
    assert "Also run 1 completed task again." in words(post(boss, BULK, **ticked))
    post(boss, BULK, confirmed="yes", **ticked)
    assert TaskRecord.objects.count() == 2
    post(boss, BULK, confirmed="yes", include_completed="1", **ticked)
    assert TaskRecord.objects.count() == 3


def test_of_a_chain_only_the_last_try_is_retried(boss, settled):
    post(boss, BULK, action="retry", all="1", filter="status=failed&resolution=all", confirmed="yes")
    retried = TaskRecord.objects.exclude(task_name__in=settled).values_list("retry_of__task_name", flat=True)
    (last,) = (name for name in settled if len(name) > 20 and settled[name].status == "failed")
    assert set(retried) == {"open", last}


@pytest.mark.parametrize(
    ("query", "is_retried"), [("", False), ("resolution=all", False), ("resolution=dismissed", True)]
)
def test_what_was_dismissed_is_retried_only_from_its_own_list(boss, settled, query, is_retried):
    post(boss, BULK, action="retry", all="1", filter=f"status=failed&{query}", confirmed="yes")
    assert settled["dismissed"].retries.exists() is is_retried


def test_a_failure_that_nobody_dismisses_twice_is_dismissed_with_the_others(boss, fail, manager):
    one, two = fail("one"), fail("two")
    manager.dismiss_failure("one")
    done = post(boss, BULK, action="dismiss", selected=[one.pk, two.pk], confirmed="yes")
    assert "Dismiss: 1 task." in words(done)
    assert "one (is no open failure)" in words(done)


# Completed work


@pytest.fixture
def done(manager, record_of) -> TaskRecord:
    end(manager, manager.launch_async_task(tasks.add, 1, task_key="done", label="Done"))
    return record_of("done")


def test_a_completed_task_runs_again_only_after_a_question(boss, done):
    page = boss.get(f"{LIST}{done.pk}/change/").content.decode()
    assert ">Run again</button>" in page
    assert ">Retry</button>" not in page
    assert "Run again" in words(boss.get(f"{LIST}?status=success"))
    question = boss.post(f"{LIST}{done.pk}/retry/", {"filter": "status=success"})
    assert "“Done” has completed. If it runs again, its work is done a second time." in words(question)
    assert TaskRecord.objects.count() == 1
    answer = boss.post(f"{LIST}{done.pk}/retry/", {"filter": "status=success", "confirmed": "yes"})
    assert answer.url == f"{LIST}?status=success"
    assert done.retries.count() == 1
    answer = boss.post(f"{LIST}{done.retries.get().pk}/cancel/")
    assert (
        boss.post(f"{LIST}{done.pk}/retry/", {"confirmed": "yes"}).url
        == f"{LIST}{done.retries.latest('pk').pk}/change/"
    )


def test_so_does_one_of_which_a_later_try_has_completed(boss, settled, manager, record_of):
    resolved = settled["resolved"]
    assert "Run again" in words(boss.get(f"{LIST}{resolved.pk}/change/"))
    question = boss.post(f"{LIST}{resolved.pk}/retry/")
    assert "A later try of “resolved” has completed." in words(question)
    name = manager.launch_async_task(tasks.add, 1)
    manager.cancel_task(name)
    end(manager, manager.retry_task(name))
    before = TaskRecord.objects.count()
    assert "A later try" in words(boss.post(f"{LIST}{record_of(name).pk}/retry/"))
    assert TaskRecord.objects.count() == before


def test_code_runs_a_completed_task_again_without_a_question(manager, done):
    manager.retry_task("done")
    assert done.retries.count() == 1


@pytest.mark.parametrize("chosen", ["ticked", "all"])
def test_a_bulk_retry_leaves_completed_tasks_out_unless_they_are_included(boss, done, fail, chosen):
    fail("failed")
    which = {"selected": list(TaskRecord.objects.values_list("pk", flat=True))} if chosen == "ticked" else {"all": "1"}
    question = post(boss, BULK, action="retry", **which)
    assert "Retry: 1 task." in words(question)
    assert "Also run 1 completed task again. Its work is done a second time." in words(question)
    post(boss, BULK, action="retry", confirmed="yes", **which)
    assert not done.retries.exists()
    post(boss, BULK, action="retry", confirmed="yes", include_completed="1", **which)
    assert done.retries.count() == 1


def test_a_bulk_retry_of_nothing_but_completed_tasks_asks_for_them(boss, done):
    question = post(boss, BULK, action="retry", selected=[done.pk]).content.decode()
    assert re.search(r'name="include_completed" value="1" required', question)
    assert 'type="submit"' in question


def test_completed_tasks_are_run_again_in_bulk(boss, done):
    question = post(boss, BULK, action="run_again", all="1", filter="status=success")
    assert "It has completed: its work is done a second time." in words(question)
    post(boss, BULK, action="run_again", all="1", filter="status=success", confirmed="yes")
    post(boss, BULK, action="run_again", all="1", filter="status=success", confirmed="yes")
    assert done.retries.count() == 1


# First what can be acted on, then the limit


@pytest.mark.parametrize("search", ["", "q=add"])
def test_cancel_all_reaches_the_queued_tasks_behind_any_number_of_ended_ones(boss, manager, monkeypatch, search):
    monkeypatch.setattr(selection, "MAX_SELECTED", 2)
    queued = [manager.launch_async_task(tasks.add, 1) for __ in range(3)]
    TaskRecord.objects.bulk_create(
        TaskRecord(task_name=f"ended-{n}", label="add", status=TaskStatus.SUCCESS) for n in range(5)
    )
    question = post(boss, BULK, action="cancel", all="1", filter=search)
    assert "Too many tasks match. Only 2 are included; 1 more remains." in words(question)
    done = post(boss, BULK, action="cancel", all="1", filter=search, confirmed="yes")
    assert "Cancel: 2 tasks." in words(done)
    assert "1 more task remains. Repeat the action for it." in words(done)
    done = post(boss, BULK, action="cancel", all="1", filter=search, confirmed="yes")
    assert "Cancel: 1 task." in words(done)
    assert "remain" not in words(done)
    assert set(TaskRecord.objects.cancelled().values_list("task_name", flat=True)) == set(queued)


@pytest.mark.parametrize("action", ["retry", "dismiss", "delete"])
def test_so_do_the_other_actions(boss, fail, manager, monkeypatch, action):
    monkeypatch.setattr(selection, "MAX_SELECTED", 2)
    for number in range(4):
        fail(f"failed-{number}")
    for __ in range(4):
        manager.launch_async_task(tasks.add, 1)
    done = post(boss, BULK, action=action, all="1", confirmed="yes")
    assert re.search(r"\w+: 2 tasks\.", words(done))
    assert "2 more tasks remain." in words(done)
    assert TaskRecord.objects.open_failures().not_being_retried().count() == 2


# Groups


@pytest.fixture
def groups(boss, fail) -> dict[str, str]:
    """Three groups of failures, of two tasks each; return the query string of each by its error."""
    for error in ("no network", "no price", "no stock"):
        fail(f"{error} 1", f"{error} for 1")
        fail(f"{error} 2", f"{error} for 2")
    return {
        group.pattern.split(": ")[1][:8].strip(): group.query for group in boss.get(FAILURES).context["summary"].groups
    }


def test_several_groups_are_retried_with_one_button(boss, groups, manager):
    chosen = [groups["no netwo"], groups["no stock"]]
    question = post(boss, BULK, action="retry", group=chosen, next=FAILURES)
    assert "Retry: 4 tasks." in words(question)
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', question.content.decode())
    answer = QueryDict(mutable=True)
    for name, value in fields:
        answer.appendlist(name, value.replace("&amp;", "&"))
    done = boss.post(BULK, answer.urlencode(), content_type="application/x-www-form-urlencoded", follow=True)
    assert done.redirect_chain[-1][0] == FAILURES
    assert "Retry: 4 tasks." in words(done)
    for record in TaskRecord.objects.exclude(retry_of=None):
        end(manager, record.task_name)
    (left,) = boss.get(FAILURES).context["summary"].groups
    assert left.query == groups["no price"]


def test_groups_are_dismissed_and_reopened(boss, groups):
    post(boss, BULK, action="dismiss", group=[groups["no price"]], confirmed="yes", note="later")
    assert len(boss.get(FAILURES).context["summary"].groups) == 2
    shown = boss.get(FAILURES, {"resolution": "dismissed"})
    (group,) = shown.context["summary"].groups
    assert group.count == 2
    assert [action.name for action in shown.context["actions"]] == ["retry", "reopen", "delete"]
    post(boss, BULK, action="reopen", group=[group.query], confirmed="yes")
    assert len(boss.get(FAILURES).context["summary"].groups) == 3


def test_nothing_is_done_if_no_group_is_ticked(boss, groups):
    done = post(boss, BULK, action="retry", next=FAILURES, confirmed="yes")
    assert "Tasks must be selected" in words(done)
    assert TaskRecord.objects.count() == 6


@pytest.mark.parametrize("exception_class", ["requests.exceptions.ValueError", ""])
def test_a_group_counts_the_tasks_that_it_leads_to_also_if_classes_share_their_name(boss, fail, exception_class):
    fail("built-in")
    fail("other")
    TaskRecord.objects.filter(task_name="other").update(exception_class=exception_class)
    (group,) = boss.get(FAILURES).context["summary"].groups
    assert (group.count, len(rows(boss.get(f"{LIST}?{group.query}")))) == (2, 2)
    assert "Dismiss: 2 tasks." in words(post(boss, BULK, action="dismiss", group=[group.query]))


def test_the_list_of_a_group_is_found_if_its_error_ends_with_a_blank(boss, fail):
    fail("blank", "['no price ']")
    (group,) = boss.get(FAILURES).context["summary"].groups
    assert rows(boss.get(f"{LIST}?{group.query}")) == ["blank"]


def test_earlier_tries_and_settled_failures_are_in_no_group(boss, settled):
    (group,) = boss.get(FAILURES).context["summary"].groups
    assert group.count == 2
    (group,) = boss.get(FAILURES, {"resolution": "all"}).context["summary"].groups
    assert group.count == 5


def test_first_seen_is_before_the_window_and_whatever_became_of_it(boss, fail, manager):
    ago = timezone.now() - timedelta(days=40)
    fail("long ago", "no price for 1")
    manager.dismiss_failure("long ago")
    TaskRecord.objects.filter(task_name="long ago").update(finished_at=ago)
    fail("other function", "no price for 3")
    TaskRecord.objects.filter(task_name="other function").update(finished_at=ago - timedelta(days=1), func="other")
    fail("now", "no price for 2")
    (group,) = boss.get(FAILURES).context["summary"].groups
    assert (group.count, group.first) == (1, ago)


def test_first_seen_of_ones_own_tasks_tells_nothing_of_others(client_of, make_user, fail):
    anna = make_user("anna")
    fail("others", "no price for 1")
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(days=3))
    own = fail("own", "no price for 2", user=anna)
    (group,) = client_of(anna).get(FAILURES).context["summary"].groups
    assert group.first == own.finished_at


def test_what_is_only_observed_is_not_offered_for_a_retry(boss, fail):
    fail("ours")
    TaskRecord.objects.filter(pk=fail("theirs", "it is broken").pk).update(source="django_tasks")
    groups = boss.get(FAILURES).content.decode().split("<tr>")[2:]
    offered = {
        "theirs" if "is broken" in group else "ours": re.findall(r'value="(retry|dismiss)"', group) for group in groups
    }
    assert offered == {"ours": ["retry", "dismiss"], "theirs": ["dismiss"]}


def test_a_group_shows_the_newest_error_with_what_its_pattern_leaves_out(boss, fail):
    fail("old", error="'name'")
    fail("new", error="Looked up:\n'recipients'\n")
    assert ">builtins.ValueError: &#x27;recipients&#x27;<" in boss.get(FAILURES).content.decode()


def test_the_list_names_the_class_of_an_error(boss, fail):
    fail("open", error="'recipients'")
    assert ">ValueError: &#x27;recipients&#x27;<" in boss.get(f"{LIST}?status=failed").content.decode()


def test_a_line_of_a_path_may_end_after_each_dot(boss, fail):
    fail("open")
    assert ">tests.<wbr>testapp.<wbr>tasks.<wbr>add</a>" in boss.get(FAILURES).content.decode()


def test_the_number_beside_an_action_is_that_of_the_tasks_that_it_is_for(boss, settled, manager):
    for number in range(3):
        manager.launch_async_task(tasks.add, 1, label=f"waiting {number}")
    page = boss.get(LIST, {"function": "tests.testapp.tasks.add"}).content.decode()
    offered = dict(re.findall(r'name="all_action" value="(\w+)"[^>]*>([^<]*)<', page))
    assert offered == {"retry": "Retry all 2", "cancel": "Cancel all 3", "dismiss": "Dismiss all 2"}
