"""All measurements of one environment, as JSON on standard output; ``bench`` runs it for each.

PCRUD_BENCH_ON=sqlite DJANGO_SETTINGS_MODULE=tests.settings.benchmark python -m tests.benchmarks.measure
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import django

from tests.benchmarks import insights, memory, pruning, statements, tracking, visitors
from tests.benchmarks.parts import LIST, WORK, cluster, empty_queue, line

#: People that are tried in turn.
CROWDS = (200, 100, 50, 25)
#: The share of the records that is pruned: with one writer more would take too long.
PRUNED = {"sqlite": 0.05, "postgresql": 0.5}
#: Tasks after which a cluster is taken to run at its full speed.
FIRST_TASKS = 20
#: Tasks of one measurement of throughput, and how often each package is measured.
THROUGHPUT_TASKS = 300
THROUGHPUT_ROUNDS = 5
OURS = "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"
PEER = "tests.benchmarks.peer.manager.PeerManager"
LABEL = "peer.peerrecord"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", default=[], help="names of measurements, such as locks")
    options = parser.parse_args()
    from django.conf import settings

    from tests import services

    with ExitStack() as servers:
        if settings.ENVIRONMENT != "sqlite":
            servers.enter_context(services.postgresql(Path(settings.DATABASES["default"]["HOST"])))
            _create_database(settings.DATABASES["default"])
        if settings.ENVIRONMENT == "postgresql-redis":
            servers.enter_context(services.redis(settings.REDIS_SOCKET))
        django.setup()
        _prepare()
        wanted: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "launches": launches,
            "locks": locks,
            "many_locks": many_locks,
            "reports": reports,
            "throughput": throughput,
            "tracking": lambda: tracking.tracking(settings.ENVIRONMENT),
        }
        if settings.ENVIRONMENT != "postgresql-redis":
            wanted["pages"] = lambda: pages(options.records)
            wanted["insights"] = lambda: insights.insights(options.records)
            wanted["visitors"] = lambda: visitors.visitors(crowds=CROWDS)
            wanted["pruning"] = lambda: pruning.pruning(options.records, PRUNED[settings.ENVIRONMENT])
            wanted["large_launch"] = lambda: large_launch(options.records)
        wanted["memory"] = memory.memory
        if "statements" in options.only and settings.ENVIRONMENT != "postgresql-redis":
            wanted["statements"] = statements.statements
        for name, measure in wanted.items():
            if options.only and name not in options.only:
                continue
            for line in measure():
                print(json.dumps({"environment": settings.ENVIRONMENT, **line}), flush=True)


def _create_database(database: dict[str, Any]) -> None:
    import psycopg

    with psycopg.connect(host=database["HOST"], user="postgres", dbname="postgres", autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{database["NAME"]}"')


def _prepare() -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0, run_syncdb=True)
    call_command("createcachetable", verbosity=0)
    User.objects.create_superuser("bench")


def _managers() -> tuple[Any, Any]:
    from django.utils.module_loading import import_string

    return import_string(OURS)(), import_string(PEER)()


def _launchers(manager: Any, peer: Any) -> dict[str, Callable[[], Any]]:
    from django_q.tasks import async_task

    return {
        "bare": lambda: async_task(f"{WORK}.nothing", 1, a=2),
        "ours": lambda: manager.launch_async_task(f"{WORK}.nothing", 1, a=2),
        # It records the end only of tasks that name their manager.
        "peer": lambda: peer.launch_async_task(f"{WORK}.nothing", 1, a=2, manager_class=PEER),
    }


def launches() -> Iterator[dict[str, Any]]:
    """A launch with its record, beside one without, as a web process does it."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from tests.benchmarks.clock import in_turn

    manager, peer = _managers()
    one = _launchers(manager, peer)
    many = {name: (lambda call=call: [call() for _ in range(20)]) for name, call in one.items()}
    queries = {}
    for name, call in one.items():
        with CaptureQueriesContext(connection) as captured:
            call()
        queries[name] = len(captured)
    for what, age in (("as Django connects", 0), ("with persistent connections", None)):
        connection.settings_dict["CONN_MAX_AGE"] = age
        connection.close()
        timings = in_turn(many, rounds=9, before=empty_queue, per=20)
        yield line(f"launch with record, {what}", "ms", timings, queries=queries)


def locks() -> Iterator[dict[str, Any]]:
    """Lock, check and release 10,000 objects."""
    from tests.benchmarks.clock import of

    manager, peer = _managers()
    keys = {LABEL: set(range(10_000))}
    few = {LABEL: set(range(100))}
    for who in (manager, peer):
        who.add_conflict_ids("warm", few)
        who.check_conflict(few)
        who.remove_conflict_ids("warm", few) if who is manager else who.remove_conflict_ids("warm")
    taken: dict[str, dict[str, list[float]]] = {step: {"ours": [], "peer": []} for step in ("lock", "check", "release")}
    for _ in range(2):
        for name, who in (("ours", manager), ("peer", peer)):
            empty_queue()
            for step, call in (
                ("lock", lambda who=who: who.add_conflict_ids("bench", keys)),
                ("check", lambda who=who: who.check_conflict(keys)),
                ("release", lambda who=who: who.remove_conflict_ids("bench")),
            ):
                start = time.perf_counter()
                answer = call()
                taken[step][name].append(time.perf_counter() - start)
                assert step == "release" or answer, (name, step)
    for step, times in taken.items():
        yield line(f"{step} 10,000 objects", "ms", {name: of(seconds) for name, seconds in times.items()})


def many_locks() -> Iterator[dict[str, Any]]:
    """How the time to lock grows."""
    from tests.benchmarks.clock import in_turn

    manager, __ = _managers()
    sizes = {"10,000": set(range(10_000)), "100,000": set(range(100_000))}
    timings = in_turn(
        {
            f"ours, {name}": (lambda ids=ids: manager.add_conflict_ids("bench", {LABEL: ids}))
            for name, ids in sizes.items()
        },
        rounds=3,
        before=empty_queue,
    )
    yield line("lock ten times as many objects", "ms", timings)


def _wait_for(task_name: str) -> Any:
    from django_q.models import Task

    from tests.services import wait_until

    wait_until(lambda: Task.objects.filter(name=task_name).exists(), f"{task_name} ends", 120)
    task = Task.objects.get(name=task_name)
    assert task.success, task.result
    return task.result


def reports() -> Iterator[dict[str, Any]]:
    """What one report of progress costs a task in its worker, and what a tracked loop does."""
    from django_q.models import Task

    from tests.benchmarks.clock import of

    manager, peer = _managers()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    with cluster():
        for _ in range(3):
            ours = manager.launch_async_task(f"{WORK}.report", task_kwargs={"manager_class": OURS, "times": 20_000})
            times["ours"].append(_wait_for(ours))
            # The peer names its tasks as it likes.
            peer.launch_async_task(f"{WORK}.report", manager_class=PEER, times=100)
            _wait_until_count(Task, func__contains="report", success=True)
            newest = Task.objects.filter(func__contains="report").exclude(name=ours).latest("stopped")
            times["peer"].append(newest.result)
            Task.objects.all().delete()
        yield line("one update_progress in a worker", "µs", {name: of(seconds) for name, seconds in times.items()})
        name = manager.launch_async_task(f"{WORK}.loops", 1_000_000, timeout=120)
        best = _wait_for(name)
        yield line("a loop over 1,000,000 items", "ms", {name: of([seconds]) for name, seconds in best.items()})


def _wait_until_count(model: Any, **which: Any) -> None:
    from tests.services import wait_until

    wait_until(lambda: model.objects.filter(**which).count() >= 2, "both have ended", 120)


def throughput() -> Iterator[dict[str, Any]]:
    """Tasks that are queued already, through a cluster with two workers, until all is recorded."""
    from django.db import connection

    yield _through_cluster("one task through a cluster")
    if connection.vendor == "postgresql":
        yield _through_cluster("one task through a cluster, connections kept", PCRUD_BENCH_CONN_MAX_AGE="600")


def _through_cluster(what: str, **environment: str) -> dict[str, Any]:
    from django_q.models import Task

    from powercrud_dashboard.models import TaskRecord
    from tests.benchmarks.clock import of
    from tests.benchmarks.peer.models import PeerRecord
    from tests.services import wait_until

    manager, peer = _managers()
    recorded = {
        "bare": Task.objects.filter(success=True),
        "ours": TaskRecord.objects.completed(),
        "peer": PeerRecord.objects.exclude(completed_at=None),
    }
    rates: dict[str, list[float]] = {"bare": [], "ours": [], "peer": []}
    for _ in range(THROUGHPUT_ROUNDS):
        for name, launch in _launchers(manager, peer).items():
            empty_queue()
            earlier = recorded[name].count()
            for _number in range(THROUGHPUT_TASKS):
                launch()

            def done(name: str = name, earlier: int = earlier) -> int:
                return min(Task.objects.count(), recorded[name].count() - earlier)

            with cluster(**environment):
                # A cluster's start is not part of it.
                wait_until(lambda: done() >= FIRST_TASKS, f"the first tasks end ({name})", 120)
                start, first = time.perf_counter(), done()
                wait_until(lambda: done() >= THROUGHPUT_TASKS, f"all tasks end ({name})", 120)
                rates[name].append((time.perf_counter() - start) / (THROUGHPUT_TASKS - first))
    return line(what, "ms", {name: of(seconds) for name, seconds in rates.items()})


def pages(records: int) -> Iterator[dict[str, Any]]:
    """The task list, its tabs, filters and searches, beside the peer's changelist with as many records."""
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client

    from powercrud_dashboard.models import TaskEvent, TaskObject, TaskRecord
    from tests.benchmarks.clock import in_turn
    from tests.benchmarks.pages import ADDRESSES
    from tests.benchmarks.peer.models import PeerRecord
    from tests.benchmarks.seed import fill

    client = Client()
    client.force_login(User.objects.get())

    def get(address: str, **headers: str) -> Callable[[], Any]:
        def ask() -> Any:
            answer = client.get(address, headers=headers)
            assert answer.status_code in (200, 204), (address, answer.status_code)
            return answer

        return ask

    def list_of(size: int) -> Any:
        empty_queue()
        for model in (TaskEvent, TaskObject, TaskRecord, PeerRecord):
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute(f"TRUNCATE {model._meta.db_table} CASCADE")
            else:
                model.objects.all()._raw_delete("default")
        fill(size)
        _fill_peer(size)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("VACUUM ANALYZE")
        else:
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")

    list_of(1_000)
    small = in_turn({"ours, 1,000": get(LIST)}, rounds=15)
    list_of(records)
    both = in_turn({"ours": get(LIST), "peer": get("/admin/peer/peerrecord/")}, rounds=9)
    yield line(f"task list, first page, {records:,} records", "ms", {**both, **small})
    slowest = in_turn({address or "/": get(LIST + address) for address in ADDRESSES}, rounds=3)
    worst = max(slowest, key=lambda address: slowest[address].median)
    yield line(
        f"the slowest of {len(ADDRESSES)} tabs, filters and searches: {worst}",
        "ms",
        {"ours": slowest[worst], "peer": both["peer"]},
        each={address: round(1000 * it.median, 1) for address, it in slowest.items()},
    )
    yield from _refreshes(client, get)


def _refreshes(client: Any, get: Callable[..., Callable[[], Any]]) -> Iterator[dict[str, Any]]:
    import re

    from tests.benchmarks.clock import in_turn

    page = client.get(LIST).content.decode()
    found = re.search(r'hx-get="([^"]+)".*?data-pcrud-state="([^"]+)"', page, re.DOTALL)
    assert found, "the list refreshes itself"
    refresh = get(found[1].replace("&amp;", "&"), hx_request="true", x_pcrud_state=found[2])
    full = get(LIST)
    # What is shown as unchanged is made anew every ten seconds; the measurement is shorter than that.
    timings = in_turn({"unchanged refresh": lambda: [refresh() for _ in range(10)]}, rounds=9, per=10)
    status = refresh().status_code
    timings |= in_turn({"full page": lambda: [full() for _ in range(10)]}, rounds=9, per=10)
    yield line(f"a refresh with nothing new (answers {status})", "ms", timings)


def _fill_peer(count: int) -> None:
    from datetime import timedelta

    from django.utils import timezone

    from tests.benchmarks.peer.models import PeerRecord
    from tests.benchmarks.seed import BATCH, copy_rows

    now = timezone.now()
    originals = min(count, BATCH)
    PeerRecord.objects.bulk_create(
        PeerRecord(
            task_name=f"peer-{number}",
            status="success" if number % 20 else "failed",
            message=f"Processed {number} of {count}",
            user_label="anna.arnold",
            completed_at=now,
        )
        for number in range(originals)
    )
    first = PeerRecord.objects.earliest("pk").pk
    for shift in range(originals, count, originals):
        last = first + min(originals, count - shift)
        changed = {"task_name": f"'peer-' || (id - {first} + {shift})"}
        copy_rows(PeerRecord, changed, f"id >= {first} AND id < {last}")
    PeerRecord.objects.update(created_at=now - timedelta(days=1))


def large_launch(records: int) -> Iterator[dict[str, Any]]:
    """A click on "Select all" of a long changelist: its time, and the memory that it takes at most."""
    from django.contrib.auth.models import User
    from django.test import Client

    from tests.benchmarks.clock import of
    from tests.benchmarks.peer.models import PeerRecord

    client = Client()
    client.force_login(User.objects.get())
    chosen = {"action": "touch", "select_across": "1", "_selected_action": [PeerRecord.objects.latest("pk").pk]}
    client.get("/admin/peer/peerrecord/")
    empty_queue()
    tracemalloc.start()
    start = time.perf_counter()
    assert client.post("/admin/peer/peerrecord/", chosen).status_code == 302
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] / 1_000_000
    tracemalloc.stop()
    yield line(f"a launch on {records:,} selected rows", "ms", {"ours": of([seconds])}, peak_megabytes=round(peak, 1))
    empty_queue()


if __name__ == "__main__":
    main()
