"""Signals for code that does not subclass a manager.

They are sent in the process that made the change, after it was committed, with ``send_robust``: an error of a receiver
is logged and harms nothing.
"""

from __future__ import annotations

from django.dispatch import Signal

#: A worker began a task. Arguments: ``task_name``, ``attempt``.
task_started = Signal()

#: A task ended. Arguments: ``task_name``, ``event`` (``complete``, ``fail`` or ``cancel``).
task_finished = Signal()
