"""Runs a built function as Lambda does: AWS's own runtime interface client, in a process of its own
that sees the artifact and its layer and nothing else, asking a Runtime API for its next event.

Times are taken from outside the process, from its spawning on, as a caller would see them.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socketserver
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ACCOUNT_ID, REGION = "000000000000", "us-east-1"
FUNCTION_ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:"
# Sampled, so that the tracer sends what it records.
TRACE_ID = "Root=1-69202f20-1de4d666d4dd26aced652b6c;Parent=53995c3f42cd8ad8;Sampled=1"
API = "/2018-06-01/runtime"
TIMEOUT_S = 60.0
STOP_DEADLINE_S = 5.0


class RuntimeExitedError(Exception):
    """The process ended, or did not answer in time; the message ends with what it wrote."""


class FunctionError(Exception):
    """The function raised, at `stage` init or invocation; `error` is what Lambda would report."""

    def __init__(self, stage: str, error: Mapping[str, Any]) -> None:
        self.stage, self.error = stage, error
        trace = "\n".join(str(line) for line in error.get("stackTrace", ()))
        super().__init__(f"{stage}: {error.get('errorType')}: {error.get('errorMessage')}\n{trace}")


@dataclass(frozen=True)
class Runtime:
    """What executes functions: a Python, and a folder that holds awslambdaric and nothing else."""

    python: Path
    client: Path


@dataclass(frozen=True)
class ColdStart:
    """Seconds of a process's first answer. `init_s`: spawned to ready for an event (what Lambda
    reports as Init Duration); `answer_s`: spawned to the first byte of the answer; `cpu_s`:
    processor time of it all, which does not grow when the machine is busy with something else.
    """

    init_s: float
    answer_s: float
    cpu_s: float


@dataclass(frozen=True)
class _Reply:
    kind: str  # response, error or init error
    body: bytes
    at: float


class Sandbox:
    """One function instance: `handler` of the artifact in `task_root`, with its layers.

    Use as a context manager; `invoke` starts the process at the first event. `environment` is all
    that the function sees beside what Lambda sets itself.
    """

    def __init__(
        self,
        runtime: Runtime,
        handler: str,
        task_root: Path,
        *,
        layers: tuple[Path, ...] = (),
        environment: Mapping[str, str],
        options: tuple[str, ...] = (),
    ) -> None:
        self._runtime, self._handler, self._task_root = runtime, handler, task_root
        self._layers, self._environment, self._options = layers, environment, options
        self._events: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._replies: queue.Queue[_Reply] = queue.Queue()
        self._first_asked: float | None = None
        self._server = _Server(self)
        self._child: subprocess.Popen[str] | None = None
        self._output: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def invoke(self, event: object, *, timeout_s: float = TIMEOUT_S) -> Any:
        """The function's answer to an event. Raises `FunctionError` and `RuntimeExitedError`."""
        self._start()
        self._events.put((str(uuid.uuid4()), json.dumps(event).encode()))
        reply = self._wait(timeout_s)
        if reply.kind != "response":
            raise FunctionError(reply.kind, json.loads(reply.body))
        return json.loads(reply.body)

    def cold_start(self, event: object) -> ColdStart:
        """Start the process, take its first answer and stop it."""
        self._events.put((str(uuid.uuid4()), json.dumps(event).encode()))
        spawned = time.perf_counter()
        self._start()
        reply = self._wait(TIMEOUT_S)
        assert self._child is not None
        assert self._first_asked is not None
        cpu = _cpu_s(self._child.pid)
        self.stop()
        if reply.kind != "response":
            raise FunctionError(reply.kind, json.loads(reply.body))
        return ColdStart(self._first_asked - spawned, reply.at - spawned, cpu)

    @property
    def name(self) -> str:
        """The function's name: the room of its handler."""
        return self._handler.split(".", 1)[0]

    @property
    def output(self) -> str:
        """What the process wrote so far, complete after `stop`."""
        return "".join(self._output)

    def stop(self) -> None:
        """End process and server; safe to call twice."""
        self._events.put(None)
        if self._child is not None:
            os.killpg(self._child.pid, signal.SIGKILL)  # Lambda freezes and drops instances as well
            self._child.wait()
            self._reader.join(STOP_DEADLINE_S)
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child = None
        self._server.shutdown()
        self._server.server_close()

    def _start(self) -> None:
        if self._child is not None:
            return
        self._child = subprocess.Popen(
            # -S: no site-packages, so that what the artifact lacks cannot come from elsewhere.
            [self._runtime.python, "-S", *self._options, "-m", "awslambdaric", self._handler],
            cwd=self._task_root,
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._child.stdout,), daemon=True)
        self._reader.start()

    def _variables(self) -> dict[str, str]:
        host, port = self._server.server_address[:2]
        return {
            **self._environment,
            "PYTHONPATH": os.pathsep.join(map(str, (*self._layers, self._runtime.client))),
            "PYTHONDONTWRITEBYTECODE": "1",  # /var/task and /opt are read-only
            "AWS_LAMBDA_RUNTIME_API": f"{host!s}:{port}",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "LAMBDA_TASK_ROOT": str(self._task_root),
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "_HANDLER": self._handler,
        }

    def _read(self, lines: Any) -> None:
        for line in lines:
            self._output.append(line)

    def _wait(self, timeout_s: float) -> _Reply:
        assert self._child is not None
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                return self._replies.get(timeout=0.2)
            except queue.Empty:
                gone = self._child.poll() is not None and self._replies.empty()
                if gone or time.monotonic() > give_up_at:
                    raise RuntimeExitedError(
                        f"{self._handler} gave no answer (exit code {self._child.returncode}):\n"
                        + self.output
                    ) from None

    def next_event(self) -> tuple[str, bytes] | None:
        """For the server: what the process gets when it asks; None when there will be no more."""
        if self._first_asked is None:
            self._first_asked = time.perf_counter()
        return self._events.get()

    def answered(self, kind: str, body: bytes, at: float) -> None:
        """For the server: what the process answered, and when its first byte was there."""
        self._replies.put(_Reply(kind, body, at))


def _cpu_s(pid: int) -> float:
    # Fields 14 and 15 of proc(5) stat; the name before them may hold spaces but ends with ")".
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        super().__init__(("127.0.0.1", 0), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    """HTTP/1.1 in its simplest form. `http.server` would refuse the client's error headers, which
    hold whole stack traces, for their length; and Nagle's algorithm costs 40 ms an answer.
    """

    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # the process was stopped while it waited
            while line := self.rfile.readline():
                at = time.perf_counter()
                method, path, _ = line.decode("latin-1").split(" ", 2)
                if not self._answer(method, path, self.rfile.read(self._length()), at):
                    return

    def _length(self) -> int:
        length = 0
        while header := self.rfile.readline().strip():
            name, _, value = header.decode("latin-1").partition(":")
            if name.lower() == "content-length":
                length = int(value)
        return length

    def _answer(self, method: str, path: str, body: bytes, at: float) -> bool:
        if method == "GET" and path == f"{API}/invocation/next":
            event = self.server.sandbox.next_event()
            if event is None:
                return False
            self._send("200 OK", event[1], _headers(event[0], self.server.sandbox))
            return True
        kind = "init error" if path == f"{API}/init/error" else path.rsplit("/", 1)[1]
        self._send("202 Accepted", b'{"status":"OK"}', {})
        self.server.sandbox.answered(kind, body, at)
        return True

    def _send(self, status: str, body: bytes, headers: Mapping[str, str]) -> None:
        lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.wfile.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body)
        self.wfile.flush()


def _headers(request_id: str, sandbox: Sandbox) -> dict[str, str]:
    return {
        "Lambda-Runtime-Aws-Request-Id": request_id,
        "Lambda-Runtime-Deadline-Ms": str(int((time.time() + TIMEOUT_S) * 1000)),
        "Lambda-Runtime-Invoked-Function-Arn": FUNCTION_ARN + sandbox.name,
        "Lambda-Runtime-Trace-Id": TRACE_ID,
    }
