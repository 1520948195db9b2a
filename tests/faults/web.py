"""Web servers on the hosts of a lane, and a person whose session is the same on all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.faults.hosts import Host
from tests.services import wait_until

#: Seconds within which a page must be there.
ANSWERS_WITHIN = 30
#: Tries to start a server.
STARTS = 3


class WebServer:
    """A real server process on a host, which serves the pages of the project."""

    def __init__(self, host: Host, options: Mapping[str, Any], directory: Path | None = None) -> None:
        self.host = host
        self._directory = directory
        self._environment = {**os.environ, "PCRUD_FAULTS_OPTIONS": json.dumps({**host.options(), **options})}
        self._start()

    def _start(self) -> None:
        self.address = self.host.web_address()
        address = "{}:{}".format(*self.address)
        self._process = subprocess.Popen(
            self.host.command([sys.executable, "-W", "ignore", "-m", "django", "runserver", "--noreload", address]),
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_it_answers(self) -> None:
        for _ in range(STARTS):
            wait_until(lambda: not self._is_running or self._answers(), f"the web server on {self.host.name} answers")
            if self._is_running:
                return
            # Somebody else may have taken its port.
            self._start()
        raise RuntimeError(f"No web server starts on {self.host.name}.")

    @property
    def _is_running(self) -> bool:
        return self._process.poll() is None

    def _answers(self) -> bool:
        try:
            return Person().get(self, "/admin/login/")[0] == 200
        except (OSError, HTTPException):
            return False

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Person:
    """Somebody with a browser, whom a load balancer sends to any of the web hosts."""

    def __init__(self) -> None:
        self._cookies: dict[str, str] = {}

    def log_in(self, server: WebServer, username: str, password: str) -> None:
        self.get(server, "/admin/login/")
        status, _text = self.post(server, "/admin/login/", {"username": username, "password": password})
        if status != 302:
            raise RuntimeError(f"{username} can't log in: {status}")

    def get(self, server: WebServer, path: str, **headers: str) -> tuple[int, str]:
        """Return the status and the text of a page."""
        return self._send(server, "GET", path, "", headers)

    def post(self, server: WebServer, path: str, data: Mapping[str, Any]) -> tuple[int, str]:
        """Submit a form, and return the status and the text, or the address of a redirect."""
        body = urlencode({**data, "csrfmiddlewaretoken": self._cookies.get("csrftoken", "")}, doseq=True)
        return self._send(server, "POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"})

    def _send(
        self, server: WebServer, method: str, path: str, body: str, headers: Mapping[str, str]
    ) -> tuple[int, str]:
        connection = HTTPConnection(*server.address, timeout=ANSWERS_WITHIN)
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        try:
            connection.request(method, path, body, {"Host": "example.com", "Cookie": cookies, **headers})
            response = connection.getresponse()
            for header in response.headers.get_all("Set-Cookie", ()):
                self._cookies.update({name: cookie.value for name, cookie in SimpleCookie(header).items()})
            text = response.read().decode()
            return response.status, response.headers.get("Location") or text
        finally:
            connection.close()
