"""Signals for those who must listen without subclassing a manager.

Both are sent in the process where the change was made, after it was committed, and with
``send_robust``: a receiver that raises is logged and harms nothing.
"""

from __future__ import annotations

from django.dispatch import Signal

#: A worker began a task. Arguments: ``task_name``, ``attempt``.
task_started = Signal()

#: A task ended. Arguments: ``task_name``, ``event`` (``complete``, ``fail`` or ``cancel``).
task_finished = Signal()
