"""Actions that run per object: each object in a transaction of its own, with its outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from django.db import DatabaseError, connections, router, transaction
from django.db.models import F, QuerySet
from django.utils.translation import gettext_noop

from powercrud_dashboard.admin.selection import READ_CHUNK_SIZE, SelectedRows
from powercrud_dashboard.async_context import TaskContext, track
from powercrud_dashboard.exceptions import (
    AllObjectsFailed,
    ClusterStopping,
    FailedAfterCommit,
    SliceEnded,
    TaskCancelled,
    TaskPaused,
)
from powercrud_dashboard.models import ActiveTask, TaskCursor, TaskObject
from powercrud_dashboard.models.database import check_can_commit, checked_transaction, coordination_db
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from powercrud_dashboard.text import MESSAGE, SHORT, clean_text, error_summary, error_text, traceback_text

logger = logging.getLogger(__name__)

#: Seconds between the tries to reach a database after its connection was lost.
RECONNECT_DELAYS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

#: How often an object is processed that loses the connection each time, although the database can be reached.
TRIES_OF_AN_OBJECT = 3

#: After these the object in hand is not suspected of having cost the attempt its worker.
STOPPED_IN_ORDER = (Exception, TaskCancelled, TaskPaused, SliceEnded, ClusterStopping)

GONE = gettext_noop("Deleted, or not visible to the user")
NOT_ALLOWED = gettext_noop("No permission")
LOST = gettext_noop("Worker lost: attempts at this object ended with the loss of the worker or at the time limit")

#: On SQLite, which has one writer and no queue: seconds of work after which others get a turn to write, and how long it
#: is. Whoever waits looks for the lock every 100 milliseconds at the latest.
WORK_BEFORE_TURN = 1.0
TURN = 0.15

Answer = TypeVar("Answer")


class PerObjectRun:
    """Calls a function for each selected object and records the outcomes."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        rows: SelectedRows,
        objects: QuerySet[Any],
        *,
        is_allowed: Callable[[Any], bool],
        lock_label: str,
        label: str,
        task: TaskContext | None,
        cursor: TaskCursor | None,
    ) -> None:
        """Prepare the run.

        Args:
            function: what to call with each object.
            rows: the selected rows.
            objects: all objects that the user may see.
            is_allowed: whether the user has the permission for an object.
            lock_label: the model's label in the outcomes.
            label: what to show beside the progress.
            task: the running task; None outside of one.
            cursor: where to go on; None if there is only one attempt.
        """
        self._function = function
        self._rows = rows
        # As a replica may lag behind. A queryset that names its database itself keeps it.
        self._db: str = objects._db or router.db_for_write(objects.model)  # type: ignore[attr-defined]
        self._objects = objects.using(self._db)
        self._is_allowed = is_allowed
        self._lock_label = lock_label
        self._label = label
        self._task = task
        self._cursor = cursor
        self._has_begun = False
        #: Seconds of work since others had a turn to write.
        self._worked = 0.0

    def run(self) -> dict[str, int]:
        """Process the objects that have no outcome yet, and return how many of all have which outcome.

        Raises:
            AllObjectsFailed: if some failed and none was done.
            OperationalError: if the database is away for too long; the remaining objects are not reached.
        """
        last = self._last_key()
        passed = self._passed()
        total = passed + self._patiently(self._rows.after(last).count)
        first_error = ""
        try:
            for pk in track(self._keys(last), total=total, description=self._label, initial=passed):
                began = time.monotonic()
                entry = self._process(pk) if self._may_begin(pk) else self._give_up(pk)
                self._let_others_write(time.monotonic() - began)
                if entry.outcome == Outcome.FAILED:
                    first_error = first_error or entry.error
        except BaseException as error:
            self._close_cursor(error)
            raise
        outcomes = self._task.outcomes if self._task else {}
        done, failed = outcomes.get(Outcome.DONE, 0), outcomes.get(Outcome.FAILED, 0)
        if failed and not done:
            if self._cursor is not None:
                # There is nothing to go on with: a retry is one of all objects.
                self._cursor.restart()
            raise AllObjectsFailed(failed, first_error or self._recorded_error())
        return {"done": done, "failed": failed, "skipped": outcomes.get(Outcome.SKIPPED, 0)}

    def _let_others_write(self, seconds: float) -> None:
        """Leave SQLite to others for a moment, such as a click that cancels the task, after so much work."""
        connection = connections[self._db]
        if connection.vendor != "sqlite" or connection.in_atomic_block:
            return
        self._worked += seconds
        if self._worked >= WORK_BEFORE_TURN:
            self._worked = 0.0
            time.sleep(TURN)

    # Where an earlier attempt was stopped

    def _last_key(self) -> Any:
        """Return the key of the last object that has an outcome; None if there is none."""
        if self._cursor is None or not self._cursor.position:
            return None
        return self._objects.model._meta.pk.to_python(self._cursor.position)

    def _passed(self) -> int:
        if self._cursor is None or not self._cursor.position:
            return 0
        # Those that are skipped as they are locked are not among the rows.
        return self._cursor.done + self._cursor.failed + self._cursor.skipped

    def _may_begin(self, pk: Any) -> bool:
        """Return whether to work on an object; not on the first one of an attempt if that has used up its tries."""
        # Asked when its turn has come: while it waits for the throttle it is not suspected of anything.
        is_first, self._has_begun = not self._has_begun, True
        return self._cursor is None or not is_first or self._cursor.open(str(pk))

    def _give_up(self, pk: Any) -> ObjectOutcome:
        """Record that an object fails which has cost several workers, so that the others follow."""
        entry = self._outcome(pk, Outcome.FAILED, LOST)
        if self._task is None:
            return entry
        logger.error("The action %s is given up for %s %s", self._label, self._lock_label, pk)
        # A task of which many objects do so comes to an end.
        ActiveTask.objects.filter(task_name=self._task.task_name).update(retries=F("retries") + 1)
        self._note(self._task, entry)
        return entry

    def _close_cursor(self, error: BaseException) -> None:
        """Note that the object in hand is not to blame for the end of this attempt."""
        if self._cursor is None or not isinstance(error, STOPPED_IN_ORDER):
            return
        try:
            self._cursor.close()
        except DatabaseError:
            logger.warning("The end of an attempt could not be noted", exc_info=True)

    def _recorded_error(self) -> str:
        """Return the error of the first object that failed in an earlier attempt."""
        name = self._task.task_name if self._task else ""
        failed = TaskObject.objects.filter(record__task_name=name, outcome=Outcome.FAILED)
        return failed.order_by("pk").values_list("error", flat=True).first() or ""

    def _keys(self, last: Any) -> Iterator[Any]:
        if self._rows.pks is not None:
            yield from self._rows.after(last).pks or ()
            return
        while keys := self._patiently(partial(self._rows.keys_after, last, READ_CHUNK_SIZE)):
            yield from keys
            last = keys[-1]

    def _process(self, pk: Any) -> ObjectOutcome:
        """Process one object, if need be again after a lost connection, and record its outcome."""
        for _attempt in range(TRIES_OF_AN_OBJECT):
            try:
                entry, stored = self._attempt(pk)
                break
            except Exception as error:
                # Others than lost connections are outcomes.
                entry, stored = self._failure(pk, None, error), ""
                self._wait_for(self._db, error)
            if self._was_committed(pk):
                entry, stored = self._outcome(pk, Outcome.DONE), Outcome.DONE.value
                break
        if self._task is not None:
            if stored == entry.outcome:
                self._task.count_outcomes([entry])
            else:
                self._note(self._task, entry, instead_of=stored)
        return entry

    def _note(self, task: TaskContext, entry: ObjectOutcome, *, instead_of: str = "") -> None:
        if not task.note_outcomes([entry], self._cursor, instead_of=instead_of):
            # Once more, as the connection may have been lost.
            self._wait_for(coordination_db(), None)
            task.note_outcomes([entry], self._cursor, instead_of=instead_of)

    def _attempt(self, pk: Any) -> tuple[ObjectOutcome, str]:
        """Process one object. Return its outcome, and the one that is stored with the object's changes, if any.

        Raises an error of the object only if a connection is lost.
        """
        obj: Any = None
        used: Any = None
        is_committed: list[bool] = []
        is_with_changes = self._task is not None and self._db == coordination_db()
        stored = Outcome.DONE.value if is_with_changes else ""
        try:
            with checked_transaction(self._db):
                used = connections[self._db].connection
                transaction.on_commit(partial(is_committed.append, True), using=self._db)
                # Read now, as others may have changed it since the launch.
                obj = self._objects.filter(pk=pk).first()
                if reason := self._reason_to_skip(obj):
                    return self._outcome(pk, Outcome.SKIPPED, reason), ""
                self._function(obj)
                done = self._outcome(pk, Outcome.DONE, obj=obj)
                if self._task is not None and is_with_changes:
                    check_can_commit(self._db)
                    self._task.write_outcomes([done], self._cursor)
            return done, stored
        except Exception as error:
            if not is_committed and _is_lost(self._db, used):
                raise
            logger.exception("The action %s failed for %s %s", self._label, self._lock_label, pk)
            return self._failure(pk, obj, error, is_committed=bool(is_committed)), stored if is_committed else ""

    def _reason_to_skip(self, obj: Any) -> str:
        if obj is None:
            return GONE
        return "" if self._is_allowed(obj) else NOT_ALLOWED

    def _failure(self, pk: Any, obj: Any, error: Exception, *, is_committed: bool = False) -> ObjectOutcome:
        text = error_summary(error)
        if is_committed:
            text = error_text(FailedAfterCommit(text), MESSAGE)
        # From the function of the project on: the first frame is this class's own.
        traceback = traceback_text(error, error.__traceback__ and error.__traceback__.tb_next)
        return self._outcome(pk, Outcome.FAILED, text, obj=obj, traceback=traceback)

    def _outcome(
        self, pk: Any, outcome: Outcome, error: str = "", *, obj: Any = None, traceback: str = ""
    ) -> ObjectOutcome:
        text = "" if obj is None else clean_text(obj, SHORT)
        return ObjectOutcome(self._lock_label, str(pk), outcome.value, error, text, traceback)

    # Lost connections

    def _patiently(self, read: Callable[[], Answer]) -> Answer:
        """Return what ``read`` returns, if need be after waiting for the database."""
        try:
            return read()
        except Exception as error:
            if not _is_lost(self._db, connections[self._db].connection):
                raise
            self._wait_for(self._db, error)
        return read()

    def _wait_for(self, alias: str, error: Exception | None) -> None:
        """Connect again to a database whose connection was lost.

        Raises ``error`` if a transaction around the action was lost with the connection, and the error of the last
        try if the database can't be reached for too long.
        """
        connection = connections[alias]
        if not _is_lost(alias, connection.connection):
            return
        if connection.in_atomic_block:
            raise error or ConnectionError(f"The connection to the database {alias} is lost.")
        for delay in (*RECONNECT_DELAYS, None):
            if self._task is not None:
                self._task.check_cancelled()
            try:
                connection.close()
                connection.ensure_connection()
            except Exception:
                if delay is None:
                    raise
                logger.warning("The database %s can't be reached; trying again in %s s", alias, delay)
                time.sleep(delay)
            else:
                return

    def _was_committed(self, pk: Any) -> bool:
        """Return whether the changes of an object were committed, and only the answer to that was lost."""
        if self._task is None or self._db != coordination_db():
            return False
        if self._cursor is not None:
            return self._cursor.has_passed(str(pk))
        entries = TaskObject.objects.touching(self._lock_label, str(pk))
        return entries.filter(record__task_name=self._task.task_name, outcome=Outcome.DONE).exists()


def _is_lost(alias: str, used: Any) -> bool:
    """Return whether the connection that was used is lost, also if Django has replaced it already."""
    connection = connections[alias]
    if connection.in_atomic_block and not connection.closed_in_transaction:
        # Asking it could spoil the transaction.
        return bool(connection.needs_rollback)
    return used is None or connection.connection is not used or not connection.is_usable()
