"""Launch an ended task once more, as a new task that is linked to the first."""

from __future__ import annotations

from typing import Any

from powercrud_dashboard import lifecycle, queueing
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.launching import Launch, LaunchingManager, launch
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.coordination import write_transaction


def retry(manager: LaunchingManager, task_name: str, user: Any = None) -> str:
    """Launch the recorded task again with the same function, arguments, objects and locks.

    Returns the new task's name.

    Raises:
        TaskNotRetryable: if there is no such record, it has not ended, a retry of it is under
            way, or what it was launched with can't be restored.
        TaskConflict: if somebody else holds one of its objects.
        EnqueueError: if the broker does not take the new task.
    """
    with write_transaction():
        # The row lock keeps two people from retrying the same task at the same moment.
        record = TaskRecord.objects.select_for_update().filter(task_name=task_name).first()
        if record is None:
            raise TaskNotRetryable(task_name, "there is no record of it.")
        if not record.is_finished:
            raise TaskNotRetryable(task_name, "it has not ended yet. Wait for its end, or cancel it first.")
        if under_way := record.retries.unfinished().first():
            raise TaskNotRetryable(task_name, f"its retry {under_way.task_name} is already under way.")
        package = _restore(record)
        new_name = launch(
            manager,
            Launch(
                func=package["func"],
                args=package["args"],
                kwargs=package["kwargs"],
                conflict_ids=package["conflict_ids"],
                affected_objects=package["affected_objects"],
                # Packages of before this was kept do without.
                object_texts=package.get("object_texts"),
                user=user,
                label=package["label"],
                group=package["group"],
                timeout=package["timeout"],
                cluster=package["cluster"],
                q_options=package["q_options"],
                retry_of=task_name,
            ),
        )
        lifecycle.emit(manager, "retry", task_name, actor=user, new_task_name=new_name)
    return new_name


def _restore(record: TaskRecord) -> dict[str, Any]:
    if not record.payload:
        raise TaskNotRetryable(record.task_name, "its arguments were not kept.")
    try:
        package: dict[str, Any] = queueing.unsign(record.payload)
    except ValueError as error:
        raise TaskNotRetryable(record.task_name, f"its arguments can't be restored: {error}.") from error
    except Exception as error:
        # Unpickling imports the arguments' classes, which may be gone or changed since.
        reason = f"its arguments can't be restored ({type(error).__name__}: {error})."
        raise TaskNotRetryable(record.task_name, reason) from error
    return package
