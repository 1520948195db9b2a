"""A task has failed: end it, or let it wait for its next try, as its policy has it."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from powercrud_dashboard import lifecycle, progress
from powercrud_dashboard.exceptions import ClusterStopping, EnqueueError, WorkerLost
from powercrud_dashboard.models import ActiveTask, FailureReason
from powercrud_dashboard.models.coordination import write_transaction
from powercrud_dashboard.retry_policy import RetryPolicy

#: What stands in a policy for failures that no exception tells of.
STAND_INS: dict[str, type[BaseException]] = {
    FailureReason.WORKER_LOST: WorkerLost,
    FailureReason.NOT_QUEUED: EnqueueError,
    FailureReason.NEVER_STARTED: EnqueueError,
}


def verdict(reason: FailureReason, text: str = "") -> dict[str, Any]:
    """Return the payload of a failure that no exception tells of; its text is by default that of the reason."""
    words = text or str(reason.label)
    return {"reason": reason.value, "error": words, "result": words, "exception_class": "", "traceback": ""}


def fail(
    manager: lifecycle.LifecycleManager,
    active: ActiveTask,
    raised: type[BaseException] | None = None,
    /,
    **payload: Any,
) -> bool:
    """End a task as failed, or let it wait for its next try if its policy allows one.

    ``raised`` is the class of what was raised; without it the payload's ``reason`` says what to take in its place.

    Returns False, with nothing changed, if the task has ended already or has passed to another attempt.
    """
    kind = raised or STAND_INS.get(payload["reason"], Exception)
    policy = RetryPolicy.from_json(active.policy)
    if (
        policy is not None
        and policy.allows_retry(active.retries, kind)
        and _postpone(manager, active, policy, kind, payload)
    ):
        return True
    return lifecycle.end(manager, active, "fail", **payload)


def _postpone(
    manager: lifecycle.LifecycleManager,
    active: ActiveTask,
    policy: RetryPolicy,
    error: type[BaseException],
    payload: dict[str, Any],
) -> bool:
    wait = policy.wait(active.retries, error)
    with write_transaction():
        if not ActiveTask.objects.all().postpone(active, wait, counts=not issubclass(error, ClusterStopping)):
            return False
        next_run_at = ActiveTask.objects.values_list("next_run_at", flat=True).get(pk=active.pk)
        facts = {**payload, "message": payload["error"], "next_run_at": next_run_at, "postponed": True}
        lifecycle.emit(manager, "retry", active.task_name, **facts)
        transaction.on_commit(lambda: progress.forget(active.task_name), using=ActiveTask.objects.db)
    return True
