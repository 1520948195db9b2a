"""What a fault is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.rounds import Round

Act = Callable[["Round"], None]

LANES = ("sqlite-orm", "sqlite-redis", "postgresql-orm", "postgresql-redis")
SQLITE = ("sqlite-orm", "sqlite-redis")
POSTGRESQL = ("postgresql-orm", "postgresql-redis")
REDIS = ("sqlite-redis", "postgresql-redis")
ORM = ("sqlite-orm", "postgresql-orm")
#: SQLite is a file of one host.
SEVERAL_HOSTS = POSTGRESQL


def _nothing(around: Round) -> None:
    """Leave everything as it is."""


@dataclass(frozen=True)
class Fault:
    name: str
    #: In the middle of the round.
    strike: Act = _nothing
    #: Before clusters are started, such as by other options for them.
    prepare: Act = _nothing
    #: Databases and brokers that it is for.
    lanes: tuple[str, ...] = LANES
    #: Whether it needs hosts that are namespaces.
    in_namespaces: bool = False
    #: Lanes whose brokers may lose messages at it that no worker has begun.
    loses: tuple[str, ...] = ()


def launching(*outcomes: str, **options: Any) -> Act:
    """Launch a task for each outcome."""

    def launch(around: Round) -> None:
        for outcome in outcomes:
            around.launch(outcome=outcome, **options)

    return launch


def option(**options: Any) -> Act:
    """Start clusters with these options."""
    return lambda around: around.world.options.update(options)
