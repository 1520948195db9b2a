"""What the task list shows, read once for all of a process's users who refresh the same list at the same time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.utils.timezone import get_current_timezone_name
from django.utils.translation import get_language

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.keyset import Page
from powercrud_dashboard.dashboard.listing import Listing
from powercrud_dashboard.dashboard.live import LiveTask, live_list, served_queues
from powercrud_dashboard.dashboard.pulse import Pulse
from powercrud_dashboard.models.database import coordination_db

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from powercrud_dashboard.dashboard.access import User
    from powercrud_dashboard.models.pausing import Pause

#: Seconds for which a snapshot serves other users, unless there is a new event: shorter than most refresh intervals.
SHARED_FOR = 1.0
#: Lists of which a process keeps a snapshot.
MAX_KEPT = 50


@dataclass(frozen=True)
class Snapshot:
    """What a list has shown at one time, but for what depends on the user."""

    listing: Listing
    page: Page
    live: dict[str, LiveTask]
    #: None for users who see only their own tasks.
    pulse: Pulse | None
    no_cluster_runs: bool
    pauses: list[Pause]
    #: The newest event, and the state of the running tasks if the page shows any, each from before what it tells of.
    newest_event: str
    running: str
    taken_at: float = field(default_factory=lambda: time.time())

    @classmethod
    def take(
        cls,
        listing: Listing,
        user: User,
        host: str,
        *,
        newest_event: str,
        pauses: Iterable[Pause],
        held: Sequence[str] = (),
    ) -> Snapshot:
        """Read what a list shows, of the records with the ``held`` keys if there are any.

        ``host`` is that of the request, and ``pauses`` are read if there are any.
        """
        page = listing.page(app_settings.DASHBOARD_PAGE_SIZE)
        if held:
            # Selected rows keep their positions.
            page = Page(listing.of_keys(held), page.previous_cursor, page.next_cursor)
        pulse = Pulse.now(listing.open_failures) if access.has_permission(user, "view_taskrecord") else None
        served = pulse.workers_by_queue if pulse else served_queues()
        # The state of the tasks is in their events, but for how far they are.
        live, running = live_list(page.records, pulse.start_interval if pulse else None, served, host)
        return cls(
            listing,
            page,
            live,
            pulse,
            not served,
            list(pauses) if pulse is None or pulse.has_pauses else [],
            newest_event,
            running,
        )


class Snapshots:
    """The snapshots that a process has taken last."""

    def __init__(self) -> None:
        self._kept: dict[object, Snapshot] = {}
        self._lock = threading.Lock()

    def get(self, key: object, newest_event: str) -> Snapshot | None:
        """Return the snapshot of a list, if it was taken just now and nothing has happened since."""
        found = self._kept.get(key)
        is_valid = found and found.newest_event == newest_event and 0 <= time.time() - found.taken_at < SHARED_FOR
        return found if is_valid else None

    def add(self, key: object, snapshot: Snapshot) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = snapshot
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


snapshots = Snapshots()


def key_of(listing: Listing, user: User, host: str) -> object:
    """Return what the snapshots of a list have in common: what it asks for, and whose tasks it may show.

    ``host`` is the request's: projects with tenants choose their database or schema by it.
    """
    sees_all = access.has_permission(user, "view_taskrecord")
    depends_on_user = not sees_all or "mine" in listing.parameters
    place = host, coordination_db(), get_language(), get_current_timezone_name()
    return sees_all, user.pk if depends_on_user else None, listing.parameters.urlencode(), place
