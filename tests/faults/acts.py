"""What happens to the hosts of ``several_hosts``, and what must hold then."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

from django.db import connection, transaction

from powercrud_dashboard.models import (
    ActiveTask,
    Alert,
    AlertKind,
    ConflictLock,
    TaskEvent,
    TaskRecord,
    WorkerProcess,
)
from powercrud_dashboard.worker.heartbeat import STOPPING
from tests.faults import ledger
from tests.faults.checker import check
from tests.faults.clock import set_clock, set_clocks_right
from tests.faults.fleet import (
    DEADLINE,
    PAGES,
    PASSWORD,
    WEB_HOSTS,
    WORKER_HOSTS,
    Fleet,
    Release,
    held,
    record_of,
    runs_on,
    told_of,
    where,
)
from tests.faults.hosts import Host
from tests.testapp.models import Visit

#: Seconds after which a task that has not ended is looked for.
LOST_AFTER = 10
#: Projects of an action per object.
VISITED = 12
#: Seconds by which clocks are off the database's, which is longer than a worker may be silent for.
APART = 30


def work(fleet: Fleet) -> None:
    """All hosts work together"""
    fleet.start_webs(fleet.old, *WEB_HOSTS)
    fleet.start_workers("worker-1", fleet.old)
    fleet.manage("worker-1", "pcrud_schedule_cleanup")
    fleet.person.log_in(fleet.webs["web-1"], "boss", PASSWORD)
    tasks = [fleet.launch(web, "work_briefly") for web in WEB_HOSTS * 2]
    fleet.expect_completed("what both web hosts have launched is completed", tasks)
    fleet.start_workers("worker-2", fleet.old)
    _use_both_worker_hosts(fleet, "both worker hosts run tasks")
    for web in WEB_HOSTS:
        fleet.expect_soon(
            f"the health address of {web} says that all is well, with four workers",
            lambda web=web: _is_well(fleet.health(web), workers=4),
        )
    problems = _problems(fleet, "web-1", f"--timeout={DEADLINE}")
    fleet.expect(f"the doctor finds no problem on web-1 {problems or ''}", not problems)
    with held():
        task = fleet.launch("web-1", "work_while_held")
        (locked,) = ConflictLock.objects.filter(active_task__task_name=task).values_list("object_id", flat=True)
        fleet.expect(
            "what web-1 has launched is locked on web-2", not fleet.launch("web-2", "work_briefly", on=[locked])
        )
        path = f"{record_of(task).pk}/change/"
        for web in WEB_HOSTS:
            fleet.expect_soon(
                f"its progress is on the page of {web}", lambda web=web: "held for" in fleet.page(web, path)
            )
    fleet.expect_completed("it completes", [task])


def cut_a_host_off(fleet: Fleet) -> None:
    """One worker host is cut off from the database and from Redis"""
    away, other = fleet.hosts["worker-1"], "worker-2"
    stopped = fleet.clusters[other]
    # Otherwise it depends on chance which host runs what.
    stopped.begin_stop()
    stopped.stop()
    with held():
        lost = fleet.launch("web-1", "work_while_held")
        retried = fleet.launch("web-2", "count_visits", VISITED)
        fleet.expect_soon("one task and one with retries run on worker-1", lambda: _run_on(away.name, lost, retried))
        fleet.start_workers(other, fleet.old)
        fleet.expect_soon("some objects of the second are done", Visit.objects.filter(task=retried).exists)
        (locked,) = ConflictLock.objects.filter(active_task__task_name=lost).values_list("object_id", flat=True)
        fleet.clusters[away.name].note("cut off")
        _cut_off_in_a_heartbeat(fleet, away)
        fleet.expect_soon(
            "the first is recorded as “Worker lost”",
            lambda: (fleet.clean_up(other), record_of(lost).failure_reason == "worker_lost")[1],
        )
        fleet.expect_soon("the second goes on elsewhere", lambda: runs_on(retried) == other)
    path = f"{record_of(lost).pk}/change/"
    for web in WEB_HOSTS:
        fleet.expect(f"the pages of {web} say that a worker is lost", "Worker lost" in fleet.page(web, path))
        text = fleet.page(web, "cluster/")
        fleet.expect(
            f"the Cluster page of {web} names its host", re.search(r"on worker-1 .*?(Lost|No heartbeat)", text, re.S)
        )
        fleet.expect_soon(
            f"the health address of {web} says that all is well with the workers that are left",
            lambda web=web: _is_well(fleet.health(web), workers=2),
        )
    fleet.expect_completed("the second completes", [retried])
    fleet.expect("by the other host", where(retried) == [away.name, other])
    fleet.expect("and has done each object once", set(Counter(_visits(retried)).values()) == {1})
    again = fleet.launch("web-2", "work_briefly", on=[locked])
    fleet.expect_completed("the object of the first can be worked on", [again])
    lost_workers = Alert.objects.open().filter(kind=AlertKind.WORKERS_LOST)
    fleet.expect_soon("an alert tells of the lost workers", lost_workers.exists)

    away.connect()
    _use_both_worker_hosts(fleet, "connected again, it runs tasks", may_lose=True)
    for web in WEB_HOSTS:
        fleet.expect_soon(
            f"the health address of {web} says that all is well again",
            lambda web=web: _is_well(fleet.health(web), workers=4),
        )
    _retry(fleet, lost)


def set_clocks_apart(fleet: Fleet) -> None:
    """The clocks of the hosts are 30 seconds before or after that of the database"""
    lost_before = list(WorkerProcess.objects.exclude(lost_at=None).values_list("pk", flat=True))
    with held():
        tasks = [fleet.launch(web, "work_while_held") for web in WEB_HOSTS]
        fleet.expect_soon("two tasks run", lambda: all(runs_on(task) for task in tasks))
        for name, direction in zip(fleet.hosts, (1, -1, -1, 1), strict=True):
            set_clock(direction * APART, name)
        tasks += [fleet.launch(web, "work_while_held") for web in WEB_HOSTS]
        tasks += [fleet.launch(web, "count_visits", VISITED) for web in WEB_HOSTS]
        locks = list(ConflictLock.objects.filter(active_task__task_name__in=tasks).values_list("object_id", flat=True))
        fleet.clean_up(*WORKER_HOSTS)
        now = ActiveTask.objects.filter(task_name__in=tasks)
        fleet.expect("no task is taken for lost or missing", now.filter(missing_since=None).count() == len(tasks))
        lost = WorkerProcess.objects.exclude(lost_at=None).exclude(pk__in=lost_before)
        fleet.expect("no worker is taken for lost", not lost.exists())
        held_locks = ConflictLock.objects.filter(active_task__task_name__in=tasks)
        fleet.expect("no lock is released", set(locks) == set(held_locks.values_list("object_id", flat=True)))
        for web in WEB_HOSTS:
            fleet.expect(f"{web} refuses what is locked", not fleet.launch(web, "work_briefly", on=[locks[0]]))
            for path in (
                "",
                "cluster/",
                "locks/",
                f"{record_of(tasks[-1]).pk}/change/",
                f"{record_of(tasks[0]).pk}/change/",
            ):
                fleet.expect(
                    f"{web} shows no time that is still to come on {path or 'the list'}",
                    not _odd_times(fleet.page(web, path)),
                )
            reasons = {reason["code"] for reason in fleet.health(web)["reasons"]}
            fleet.expect(f"the health address of {web} tells of the clocks", reasons == {"clock"})
        problems = _problems(fleet, "worker-1", "--no-test")
        named = [host for host in WORKER_HOSTS if any(f"clock of {host} is" in text for text in problems)]
        fleet.expect("the doctor names the hosts whose clocks are wrong", named == [*WORKER_HOSTS])
    fleet.expect_completed("all tasks complete", tasks)
    records = TaskRecord.objects.filter(task_name__in=tasks)
    fleet.expect("each in its first attempt", set(records.values_list("attempts", flat=True)) == {1})
    in_order = all(it.created_at <= it.started_at <= it.finished_at for it in records)
    fleet.expect("each began after its launch, and ended after that", in_order)
    set_clocks_right()
    for web in WEB_HOSTS:
        fleet.expect_soon(
            f"with the clocks set right, the health address of {web} says that all is well",
            lambda web=web: _is_well(fleet.health(web), workers=4),
        )


def deploy(fleet: Fleet) -> None:
    """The next release is deployed, on one host after the other"""
    with held():
        before = [fleet.launch(web, "work_while_held") for web in WEB_HOSTS * 2]
        before += [fleet.launch(web, "count_visits", VISITED) for web in WEB_HOSTS]
        before += [fleet.launch(web, "work_briefly") for web in WEB_HOSTS]
        fleet.expect_soon("four tasks run", lambda: ActiveTask.objects.running().count() == 4)
        fleet.start_webs(fleet.new, "web-1")
        after = [fleet.launch("web-1", action) for action in ("work_briefly", "work_differently")]
        beside = [fleet.launch("web-2", "work_briefly")]
        fleet.clean_up("worker-2")
        fleet.expect("nothing is missing", not ActiveTask.objects.missing().exists())
        for web in WEB_HOSTS:
            fleet.expect(
                f"{web} lists the tasks of both",
                all(f"{record_of(it).pk}/change/" in fleet.page(web) for it in (*after, *beside)),
            )
        old = fleet.clusters["worker-1"]
        running = [task for task in before if runs_on(task) == "worker-1"]
        old.begin_stop()
        told = TaskEvent.objects.filter(record__task_name__in=running, event="log", message=STOPPING)
        fleet.expect_soon("tasks are told that their cluster is stopped", lambda: told.count() == len(running))
    old.stop()
    fleet.expect_completed("what old workers have begun is completed", before[:4])
    fleet.expect_completed("while only they run, they complete what an old web host launches", [*before, *beside])
    _look_at_what_is_newer(fleet, after)
    _replace_workers(fleet, "worker-2", fleet.new)
    fleet.start_webs(fleet.new, "web-2")
    fleet.is_deployed = True
    _use_both_worker_hosts(fleet, "all hosts run tasks of the new release", action="work_differently")
    releases = set(TaskRecord.objects.filter(task_name__in=after).values_list("release", flat=True))
    fleet.expect("tasks tell the release that has launched them", releases == {fleet.new.name})


def _look_at_what_is_newer(fleet: Fleet, tasks: list[str]) -> None:
    """Look at what a new web host has launched beside old workers: what both releases can do, and what is new."""
    same, new = tasks
    if fleet.new.releases_later:
        waiting = TaskRecord.objects.queued().filter(release=fleet.new.name)
        names = set(waiting.values_list("task_name", flat=True))
        fleet.expect("what a new web host launches in a newer format waits", names == set(tasks))
        fleet.start_workers("worker-1", fleet.new)
        fleet.expect_completed("the first new worker host runs it", tasks)
        fleet.expect("and no other one", {where(task)[-1] for task in tasks} == {"worker-1"})
        return
    fleet.expect_completed("old workers run what they know, whichever release has launched it", [same])
    fleet.expect_soon("and what they don't know has failed", lambda: record_of(new).status == "failed")
    fleet.expect("with an error that names it", "work_differently" in record_of(new).error)
    fleet.start_workers("worker-1", fleet.new)
    _replace_workers(fleet, "worker-2", fleet.new)
    _retry(fleet, new)


def look_back(fleet: Fleet) -> None:
    """Afterwards"""
    fleet.clean_up("worker-1")
    fleet.stop()
    fleet.expect("no task is left", not ActiveTask.objects.exists())
    fleet.expect("no lock is left", not ConflictLock.objects.exists())
    book = ledger.read(fleet.ledger)
    for text in check(fleet.launched, (), book):
        fleet.expect(text, False)
    returned = Counter(run.task for run in book.runs if run.outcome == ledger.RETURNED)
    worked = TaskRecord.objects.filter(func__startswith="tests.faults.shop").exclude(label="Count visits")
    said = dict(worked.values_list("task_name", "status"))
    wrong = {name: returned[name] for name, status in said.items() if returned[name] != (status == "success")}
    fleet.expect(
        f"of {len(said)} functions exactly those have ended that are recorded as completed {wrong or ''}", not wrong
    )
    counted = TaskRecord.objects.filter(label="Count visits")
    stored = [(it.task_name, Counter(_visits(it.task_name))) for it in counted]
    each_once = all(len(visits) == VISITED and set(visits.values()) == {1} for _name, visits in stored)
    fleet.expect(f"{len(stored)} actions have done each object once", each_once)


# Steps


def _cut_off_in_a_heartbeat(fleet: Fleet, away: Host) -> None:
    """Cut a host off at the worst moment: PostgreSQL keeps the transaction, and waits 30 seconds for its next part."""
    with transaction.atomic():
        # Each heartbeat waits a quarter of a second for the row.
        list(WorkerProcess.objects.filter(host=away.name, lost_at=None).select_for_update(no_key=True))
        fleet.expect_soon("a heartbeat is on its way", _somebody_waits_for_a_row)
        away.cut_off()


def _somebody_waits_for_a_row() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')")
        return bool(cursor.fetchone()[0])


def _use_both_worker_hosts(fleet: Fleet, what: str, action: str = "work_briefly", *, may_lose: bool = False) -> None:
    """Launch tasks until both worker hosts have run one, and wait for their ends.

    ``may_lose`` says that Redis may have given some to a connection that is gone.
    """
    tasks: list[str] = []
    deadline = time.monotonic() + DEADLINE
    seen: set[str] = set()
    while seen != set(WORKER_HOSTS) and time.monotonic() < deadline:
        tasks += [fleet.launch(web, action) for web in WEB_HOSTS]
        time.sleep(0.3)
        seen = {host for task in tasks for host in where(task)}
    fleet.expect(what, seen == set(WORKER_HOSTS))
    if may_lose:
        _find_what_redis_has_lost(fleet, tasks)
    else:
        fleet.expect_completed("and completes all of them", tasks)


def _replace_workers(fleet: Fleet, name: str, release: Release) -> None:
    fleet.clusters[name].begin_stop()
    fleet.clusters[name].stop()
    fleet.start_workers(name, release)


def _retry(fleet: Fleet, task: str) -> None:
    before = TaskRecord.objects.count()
    fleet.person.post(fleet.webs["web-2"], f"{PAGES}{record_of(task).pk}/retry/", {})
    fleet.expect("it is retried on its page", TaskRecord.objects.count() == before + 1)
    retry = TaskRecord.objects.latest("pk")
    fleet.launched.append(retry.task_name)
    fleet.expect_completed("and completes", [retry.task_name])
    fleet.expect("which resolves the failure", record_of(task).resolution == "resolved")


def _find_what_redis_has_lost(fleet: Fleet, tasks: list[str]) -> None:
    records = TaskRecord.objects.filter(task_name__in=tasks)
    completed = records.filter(status="success")
    if not fleet.becomes_true(lambda: completed.count() == len(tasks), LOST_AFTER):
        fleet.becomes_true(lambda: (fleet.clean_up("worker-2"), not records.unfinished().exists())[1])
    lost = records.filter(failure_reason="never_started")
    others = records.exclude(pk__in=completed.values("pk")).exclude(pk__in=lost.values("pk"))
    fleet.expect(
        f"and completes all of them but {lost.count()} that Redis has lost{told_of(others)}", not others.exists()
    )


def _problems(fleet: Fleet, host: str, *options: str) -> list[str]:
    told = json.loads(fleet.manage(host, "pcrud", "doctor", "--json", *options).stdout)
    return [finding["text"] for finding in told["findings"] if finding["level"] == "problem"]


def _run_on(host: str, *tasks: str) -> bool:
    return all(runs_on(task) == host for task in tasks)


def _visits(task: str) -> list[int]:
    return list(Visit.objects.filter(task=task).values_list("project", flat=True))


def _is_well(health: dict[str, object], *, workers: int) -> bool:
    return (health["http"], health["status"], health["workers"]) == (200, "ok", workers)


def _odd_times(text: str) -> list[str]:
    """Return times on a page that are negative, or still to come."""
    plain = re.sub(r"<[^>]*>", " ", text)
    return re.findall(r"(?:\bin|[-−])\s?\d+\s(?:s|min|h)\b", plain)
