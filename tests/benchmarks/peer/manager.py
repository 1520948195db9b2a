from __future__ import annotations

from powercrud.async_dashboard import ModelTrackingAsyncManager


class PeerManager(ModelTrackingAsyncManager):
    record_model_path = "peer.PeerRecord"
