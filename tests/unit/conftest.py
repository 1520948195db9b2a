from __future__ import annotations

import pytest


@pytest.fixture
def at_once(settings) -> None:
    """Run tasks in the process that launches them."""
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False}


@pytest.fixture(autouse=True)
def _short_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that seem lost are not watched for long where there are none."""
    monkeypatch.setattr("powercrud_dashboard.liveness.OBSERVATION", 0.0)
