"""``make demo``: the demo's web server and worker, side by side, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import time

from tests.demo.login import PASSWORD, USERNAME
from tests.demo.processes import Processes, manage

FIRST_PORT = 8000


def free_port() -> int:
    """Return the first free port from 8000 on."""
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise SystemExit(f"No free port between {FIRST_PORT} and {FIRST_PORT + 99}.")


def main() -> None:
    # Also where it was started in the background, which shells do with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with Processes() as processes:
        try:
            serve(processes)
        except KeyboardInterrupt:
            print("\nStopping …", flush=True)
            return
    raise SystemExit("A process of the demo has ended by itself; see its messages above.")


def serve(processes: Processes) -> None:
    """Set the demo up and start it; return when one of its processes has ended by itself."""
    manage("migrate", "--verbosity", "0")
    manage("load_inventory")
    manage("load_history")
    manage("pcrud_schedule_cleanup")
    port = int(os.environ.get("PORT", 0)) or free_port()
    started = [
        processes.start("qcluster"),
        processes.start("runserver", f"127.0.0.1:{port}", "--noreload"),
    ]
    print(f"\nOpen http://127.0.0.1:{port}/admin/inventory/sourcefile/")
    print(f"Log in as {USERNAME} with the password {PASSWORD}. Ctrl-C stops everything.\n", flush=True)
    while all(process.poll() is None for process in started):
        time.sleep(0.5)


if __name__ == "__main__":
    main()
