"""Runs the background work of django-powercrud's views as tasks of this package.

``POWERCRUD_SETTINGS["ASYNC_MANAGER_DEFAULT"]["manager_class"]`` names :class:`PowerCrudManager`, or a subclass.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

from django.apps import apps
from django.core.cache.backends.dummy import DummyCache
from django.core.exceptions import NON_FIELD_ERRORS, FieldDoesNotExist, ImproperlyConfigured
from django.db import models, router, transaction
from django.urls import URLResolver
from django.utils.html import escape
from django.utils.text import format_lazy
from django.utils.translation import gettext, gettext_lazy
from powercrud.async_context import task_context
from powercrud.async_manager import AsyncManager as PeerManager
from powercrud.bulk_persistence import BulkUpdateExecutionContext, resolve_bulk_update_persistence_backend
from powercrud.mixins.bulk_mixin import BulkMixin

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import calls, locks, registry
from powercrud_dashboard.engine.spec import TaskFunction, argument_names, is_plain_json, resolve_function
from powercrud_dashboard.exceptions import FailedAfterCommit
from powercrud_dashboard.models import TaskRecord, TaskStatus
from powercrud_dashboard.models.database import check_can_commit, checked_transaction
from powercrud_dashboard.text import error_summary, translated

__all__ = ["BulkOperationFailed", "PowerCrudManager"]

logger = logging.getLogger(__name__)


class PowerCrudManager(DashboardAsyncManager, PeerManager):  # type: ignore[misc]  # django-powercrud has no types
    """A manager of this package that is one of django-powercrud as well, as its views and its workers insist on.

    Where both have a method of the same name it is the one of this package. What only django-powercrud has works on its
    cache, which is :class:`_LockHolders` here: it keeps nothing.
    """

    #: Inline editing looks up there who has locked a row and when, and by the next method the names of the columns.
    _record_model = TaskRecord

    def _field(self, logical_name: str, default: str | None) -> str | None:
        # The columns of the records have the names that are PowerCRUD's defaults.
        return default

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        # Sets the attributes that are read by PowerCRUD's methods, and by subclasses that were written for it.
        PeerManager.__init__(self)

    def get_cache(self) -> _LockHolders:
        """Return what is called ``cache`` in PowerCRUD: no cache is needed."""
        return _LockHolders(self)

    # Launch

    def launch_async_task(
        self,
        func: str | TaskFunction,
        *args: Any,
        task_key: str | uuid.UUID | None = None,
        manager_class: object = None,
        manager_config: object = None,
        **options: Any,
    ) -> str:
        """Launch a task as :meth:`AsyncManager.launch_async_task` does, from PowerCRUD's arguments too.

        Args:
            func: the function. PowerCRUD's two bulk tasks are replaced by those below.
            *args: its arguments. A UUID at their end that the function has no parameter for is the ``task_key``.
            task_key: the name of the task.
            manager_class: ignored, as a worker uses the class that has launched the task.
            manager_config: ignored in the same way.
            **options: the other arguments of :meth:`AsyncManager.launch_async_task`.
        """
        path, function = resolve_function(func)
        if task_key is None and args and _is_uuid(args[-1]) and len(argument_names(function, len(args))) < len(args):
            *args, task_key = args  # type: ignore[assignment]  # a list will do
        if path in _BULK_TASKS:
            bulk_function, label = _BULK_TASKS[path]
            func = f"{__name__}.{bulk_function.__name__}"
            options.setdefault("shown_func", path)
            given = {**dict(zip(argument_names(bulk_function, len(args)), args, strict=False)), **options}
            objects = given.get("model_path", path)
            if isinstance(given.get("affected_objects"), str):
                # Its "25 books" is no object: those that the task locks are known by their keys.
                objects = options.pop("affected_objects")
            options.setdefault("label", format_lazy(label, objects=objects))
            args = tuple(map(_without_controls, args))
            options = {name: _without_controls(value) for name, value in options.items()}
        return super().launch_async_task(func, *args, task_key=task_key, **options)

    def wrap_function(self, func: TaskFunction) -> TaskFunction:
        """Make the task the current one in ``powercrud.async_context`` too, while its function runs."""
        if calls.is_generator_function(func):
            # It is refused.
            return func

        @wraps(func)
        def run_in_context(*args: Any, **kwargs: Any) -> Any:
            task = get_current_task()
            with nullcontext() if task is None else task_context(task.task_name, self.manager_class_path):
                # A coroutine runs to its end here.
                return calls.call(func, *args, **kwargs)

        return run_in_context

    # Status and progress

    def get_task_status_cache_only(self, task_name: str) -> str | None:
        """Return the status; one that has ended is "completed". PowerCRUD's own method asks its cache."""
        return "completed" if self.is_task_complete(task_name) else self.get_task_status_nowait(task_name)

    def describe_progress(self, task_name: str) -> dict[str, Any]:
        """Return the answer of the progress endpoint in the statuses that the script on PowerCRUD's pages knows.

        With another status that script shows the JSON. It shows ``progress`` as the reason of a failure, and puts it
        into the page as HTML.
        """
        found = super().describe_progress(task_name)
        if found["status"] == TaskStatus.CANCELLED:
            found.update(status=TaskStatus.FAILED.value, progress=gettext("Cancelled."))
        elif found["status"] == TaskStatus.PAUSED:
            found.update(status=TaskStatus.PENDING.value, progress=gettext("Paused."))
        elif found["status"] == TaskStatus.FAILED:
            errors = TaskRecord.objects.filter(task_name=task_name).values_list("error", flat=True)
            found["progress"] = translated(errors.first() or "") or found["progress"]
        if found["progress"]:
            # Translated first, as the translation is not known by what is escaped.
            found["progress"] = escape(gettext(found["progress"]))
        return found

    def is_open_to_all(self, task_name: str) -> bool:
        """Return whether it is a bulk task that was launched by somebody who was not logged in.

        The session of that person is not known here: whoever knows the task's name, a random UUID, may follow it.
        """
        bulk_tasks = TaskRecord.objects.filter(func__in=_BULK_TASKS, user=None, user_label="", retry_of=None)
        return bulk_tasks.filter(task_name=task_name).exists()

    def cleanup_completed_tasks(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Clean up, also what managers of PowerCRUD have left in their cache; a dry run does not look there."""
        summary = super().cleanup_completed_tasks(dry_run=dry_run)
        if dry_run:
            return summary
        peer = object.__new__(PeerManager)
        try:
            PeerManager.__init__(peer)
            return _merged(summary, _peer_cleanup(peer))
        except ImproperlyConfigured:
            # They need a cache that the processes share. Without one they have never run a task.
            return summary
        except Exception:
            logger.exception("What managers of PowerCRUD have left in their cache could not be cleaned up")
            return summary

    @classmethod
    def get_urlpatterns(cls, prefix: str = "powercrud/", namespace: str = "powercrud") -> URLResolver:
        """Return PowerCRUD's own URLs, which are more than the progress endpoint."""
        if namespace != "powercrud":
            return super().get_urlpatterns(prefix, namespace)
        patterns: URLResolver = PeerManager.get_urlpatterns(prefix)
        return patterns


class _LockHolders(DummyCache):
    """Answers inline editing, which looks up in the cache who has locked a row, and keeps nothing."""

    def __init__(self, manager: PowerCrudManager) -> None:
        super().__init__("", {})
        self._manager = manager

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        prefix: str = self._manager.conflict_model_prefix
        if not key.startswith(prefix):
            return default
        label, _colon, pk = key.removeprefix(prefix).partition(":")
        found = locks.locks_by_key(label, [pk])
        return next((lock.active_task.task_name for lock in found.values()), default)


def _merged(summary: dict[str, Any], peers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a cleanup with that of PowerCRUD's added."""
    summary["active_tasks"] += peers["active_tasks"]
    for part in ("cleaned", "skipped"):
        summary[part] |= peers[part]
        summary[f"{part}_count"] += len(peers[part])
    return summary


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False


def _without_controls(argument: Any) -> Any:
    """Return the argument ``field_data`` without what a form needs of each field, which can't be pickled."""
    if not isinstance(argument, list) or not all(isinstance(item, dict) and "info" in item for item in argument):
        return argument
    return [{**item, "info": _plain(item["info"])} for item in argument]


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    # The name may be a lazy translation.
    texts = {name: str(info[name]) for name in ("verbose_name",) if name in info}
    return {name: value for name, value in {**info, **texts}.items() if is_plain_json(value)}


# What a worker calls. PowerCRUD's own tasks return False instead of raising an error; and if they don't find their
# manager, they go on with one that knows nothing of this task. These call the layer below them.


class BulkOperationFailed(RuntimeError):
    """A bulk update or deletion has failed, and nothing of it is stored."""

    def __init__(self, errors: Any) -> None:
        self.errors = _listed(errors)
        super().__init__("; ".join(filter(None, map(_reason, self.errors))) or "PowerCRUD gives no reason.")


def _listed(value: Any) -> list[Any]:
    """Return what PowerCRUD has as a list, and a persistence backend of a project perhaps in another form, as one."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _reason(error: Any) -> str:
    scope, messages = error if isinstance(error, list | tuple) and len(error) == 2 else (None, error)
    text = " ".join(str(message) for message in _listed(getattr(messages, "messages", messages)) if message)
    return text if not text or scope in (None, "general", NON_FIELD_ERRORS) else f"{scope}: {text}"


def bulk_delete(model_path: str, selected_ids: list[Any], user_id: Any, *, task_key: str = "") -> int:
    """Delete these objects, all or none. Return how many."""
    with _bulk_operation(model_path, selected_ids) as operation:
        result = BulkMixin()._perform_bulk_delete(
            operation.objects, progress_callback=partial(operation.report, "deleting")
        )
        return operation.finish("delete", result)


def bulk_update(
    model_path: str,
    selected_ids: list[Any],
    user_id: Any,
    bulk_fields: list[str],
    fields_to_update: list[str],
    field_data: list[dict[str, Any]],
    *,
    task_key: str = "",
    manager_class: str = "",
    bulk_update_persistence_backend_path: str | None = None,
    bulk_update_persistence_backend_config: dict[str, Any] | None = None,
) -> int:
    """Update these objects with the persistence backend, all or none. Return how many."""
    backend = resolve_bulk_update_persistence_backend(
        bulk_update_persistence_backend_path, config=bulk_update_persistence_backend_config
    )
    with _bulk_operation(model_path, selected_ids) as operation:
        result = backend.persist_bulk_update(
            queryset=operation.objects,
            bulk_fields=bulk_fields,
            fields_to_update=fields_to_update,
            field_data=[{**item, "info": _with_field(operation.objects.model, item)} for item in field_data],
            context=BulkUpdateExecutionContext(
                mode="async",
                model_path=model_path,
                selected_ids=tuple(selected_ids),
                user_id=user_id,
                task_name=task_key,
                manager_class_path=manager_class,
            ),
            progress_callback=partial(operation.report, "updating"),
        )
        return operation.finish("update", result)


_BULK_TASKS: dict[str, tuple[TaskFunction, Any]] = {
    "powercrud.tasks.bulk_delete_task": (bulk_delete, gettext_lazy("Delete {objects}")),
    "powercrud.tasks.bulk_update_task": (bulk_update, gettext_lazy("Update {objects}")),
}


class _BulkOperation:
    """What a bulk operation works on, and how it tells of its work."""

    def __init__(self, objects: models.QuerySet[Any]) -> None:
        self.objects = objects
        self._task = get_current_task()

    def report(self, verb: str, current: int, total: int) -> None:
        """Report progress. Where something is caught that spoils the transaction, this raises an error.

        PowerCRUD's own transaction, from whose block this is called, would be rolled back without one.
        """
        check_can_commit(self.objects.db)
        if self._task is not None:
            self._task.update_progress(f"{verb}: {current}/{total}")

    def finish(self, name: str, result: Mapping[str, Any]) -> int:
        """Return the number of objects; call it as the last thing of the block."""
        if not result.get("success"):
            raise BulkOperationFailed(result.get("errors"))
        count = int(result.get("success_records", 0))
        if self._task is not None:
            self._task.update_progress(f"completed {name}: {count} processed", current=count, total=count)
            self._task.commit_now()
        return count


@contextmanager
def _bulk_operation(model_path: str, selected_ids: list[Any]) -> Iterator[_BulkOperation]:
    """Make all of the block one transaction, on these objects.

    PowerCRUD's own ends before it reports that it is done: a cancellation at that moment would be recorded for work
    that is stored.
    """
    model = apps.get_model(model_path)
    # Read where they are written, as a replica may lag behind.
    using = router.db_for_write(model)
    committed: list[bool] = []
    try:
        with checked_transaction(using):
            transaction.on_commit(partial(committed.append, True), using=using)
            yield _BulkOperation(model.objects.using(using).filter(pk__in=selected_ids))
    except Exception as error:
        if committed:
            raise FailedAfterCommit(error_summary(error)) from error
        raise


def _with_field(model: type[models.Model], item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what PowerCRUD knows of a field, with the field itself, which was not sent to the worker."""
    try:
        field = model._meta.get_field(item["field"])
    except FieldDoesNotExist:
        return dict(item["info"])
    return {**item["info"], "field": field, "choices": getattr(field, "choices", None)}


# Where PowerCRUD's own code makes a manager, it makes one of its base class, whatever the settings say:
# register_descendant_conflicts(), the scheduled cleanup, the command and the URLs do. So these three of that class's
# methods are replaced.


def _manager_class_for(peer_class: type[Any]) -> type[Any]:
    """Return the class to use where PowerCRUD names its base class: of the running task, else the configured one."""
    if peer_class is not PeerManager:
        return peer_class
    task = get_current_task()
    if task is not None and isinstance(task.manager, PowerCrudManager):
        return type(task.manager)
    configured = registry.find_manager(app_settings.ASYNC_MANAGER_DEFAULT.get("manager_class"))
    return configured if configured is not None and issubclass(configured, PowerCrudManager) else peer_class


def _new(peer_class: type[Any], *args: Any, **kwargs: Any) -> Any:
    return object.__new__(_manager_class_for(peer_class))


def _as_view(peer_class: type[Any], template_name: str | None = None) -> Callable[..., Any]:
    """Return a view that is the progress endpoint of this package for its tasks, and else PowerCRUD's."""
    peer_view = _peer_as_view(peer_class, template_name)

    def progress_view(request: Any) -> Any:
        manager_class = _manager_class_for(peer_class)
        if manager_class is peer_class:
            record = TaskRecord.objects.filter(task_name=request.GET.get("task_name", "")).first()
            manager = registry.manager_of(record) if record is not None else None
            if not isinstance(manager, PowerCrudManager):
                return peer_view(request)
            manager_class = type(manager)
        return manager_class.as_view()(request)

    return progress_view


def _cleanup_completed_tasks(peer_manager: Any) -> dict[str, Any]:
    """Clean up for both packages, as both have a command of the same name."""
    return _merged(DashboardAsyncManager().cleanup_completed_tasks(), _peer_cleanup(peer_manager))


_peer_as_view = PeerManager.as_view.__func__
_peer_cleanup = PeerManager.cleanup_completed_tasks
PeerManager.__new__ = staticmethod(_new)
PeerManager.as_view = classmethod(_as_view)
PeerManager.cleanup_completed_tasks = _cleanup_completed_tasks
