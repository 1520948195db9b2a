"""Faults of deploys: releases side by side, messages of older ones, new keys, modules that are gone."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
import pickle
import shutil
from pathlib import Path

from django.conf import settings
from django_q.models import OrmQ
from django_q.signing import SignedPackage

from powercrud_dashboard.engine.spec import TaskCall
from tests.faults import release
from tests.faults.fault import LANES, ORM, Fault
from tests.faults.rounds import Round

DATA = Path(__file__).parents[1] / "data"

#: Seconds for which an older release runs beside a newer one.
SIDE_BY_SIDE = 6


def _start_newer_cluster(around: Round) -> None:
    """Start a cluster of the next release; those before it are stopped later."""
    world = around.world
    older = [*world.clusters]
    world.options["releases_later"] = 1
    newer = world.start_cluster()

    def stop_older() -> None:
        # A person who stops the older ones sees to it first that a newer one runs.
        if not newer.is_running:
            world.start_cluster()
        for cluster in older:
            world.begin_stop(cluster)

    around.later(SIDE_BY_SIDE, stop_older)


def _deploy_the_web_first(around: Round) -> None:
    """Launch tasks from a newer release than that of the workers, which must leave them for newer ones."""
    release.use(1)
    for _ in range(3):
        around.launch()
    _start_newer_cluster(around)


def _deploy_the_workers_first(around: Round) -> None:
    """Let a newer worker run beside an older one, both with tasks of an older web process."""
    _start_newer_cluster(around)
    for _ in range(3):
        around.launch()


def _deploy_all_at_once(around: Round) -> None:
    """Stop the clusters with tasks in the queue, and start newer ones."""
    around.world.stop_clusters()
    for _ in range(3):
        around.launch()
    around.world.options["releases_later"] = 1
    release.use(1)
    around.world.start_cluster()


def _rewrite_as_version_1(around: Round) -> None:
    """Let messages in the queue be those of the first release."""
    call = pickle.loads(base64.b64decode((DATA / "task_call_v1.pickle.b64").read_text()))
    least = json.loads((DATA / "spec_v1_least.json").read_text())
    for _ in range(2):
        around.launch()
    for message in OrmQ.objects.all():
        task = SignedPackage.loads(message.payload)
        if isinstance(task["func"], TaskCall):
            now = json.loads(task["func"].spec)
            spec = json.dumps({**least, "func": now["func"], "arguments": now.get("arguments", {})})
            task["func"] = dataclasses.replace(call, task_name=task["func"].task_name, spec=spec, name=now["func"])
            OrmQ.objects.filter(pk=message.pk).update(payload=SignedPackage.dumps(task))


def _rotate_secret(around: Round) -> None:
    """From here on clusters have a new key, and take the old one for what was signed before."""
    around.world.stop_clusters()
    around.world.options.update(secret_key="a new secret", secret_key_fallbacks=[settings.SECRET_KEY])
    around.world.start_cluster()


def _remove_module(around: Round) -> None:
    """Launch a function whose module is gone by the time that a worker looks for it."""
    module = Path(settings.STATE_DIR) / "modules" / f"gone_{around.number}.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text("def function():\n    return 1\n")
    importlib.invalidate_caches()
    around.launch_path(f"{module.stem}.function")
    module.unlink()
    shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)


DEPLOYS = [
    Fault("newer web process beside an older worker", _deploy_the_web_first),
    Fault("newer worker beside an older one", _deploy_the_workers_first),
    Fault("new release with tasks in the queue", _deploy_all_at_once),
    Fault("messages of the first release", _rewrite_as_version_1, lanes=ORM),
    Fault("secret key rotated", _rotate_secret, loses=LANES),
    Fault("module gone after a deploy", _remove_module),
]
