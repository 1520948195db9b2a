from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that seem lost are not watched for long where there are none."""
    monkeypatch.setattr("powercrud_dashboard.liveness.OBSERVATION", 0.0)
