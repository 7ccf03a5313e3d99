"""The warm worker of one store: keeps models loaded and answers one JSON question after the other."""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, UnknownName
from interp.registry import load_entry
from interp.run import Store
from interp.worker_client import GROUP, LONGEST_REQUEST

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint
    from interp.model import Transformer
    from interp.tasks.base import Task

IDLE_SECONDS = 900.0
MODELS, KEPT = 8, 64
# What a question can run into beside an InterpError; the worker says so, keeps its models and goes on.
DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)

Handler = Callable[["Warm", dict[str, Any]], dict[str, Any]]


class Warm:
    """What a request function is given: the store, models that stay loaded, and anything else worth keeping."""

    def __init__(self, store: Store):
        self.store = store
        self._models: OrderedDict[Any, Any] = OrderedDict()
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    def model(self, run: str, step: int | None = None) -> "tuple[Transformer, Task, Checkpoint]":
        """The model of one checkpoint in evaluation mode, with its task; the last 8 stay loaded.

        Raises:
            UnknownName, StoreError, CheckpointError: as `interp.train.load_model`.
        """
        from interp.train import load_model

        found = self.store.run(run)
        refs = found.checkpoints(rolling=True)
        newest = refs[-1].step if step is None and refs else step
        stamp = next((one.path.stat().st_mtime_ns for one in refs if one.step == newest), 0)
        return _cached(self._models, (run, newest, stamp), MODELS, lambda: load_model(found, newest))

    def keep(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gave for this key before, or gives now; the last 64 are kept."""
        return _cached(self._kept, key, KEPT, make)


def checkpoint_summary(warm: Warm, request: dict[str, Any]) -> dict[str, Any]:
    """The request `checkpoint` {run, step}: number of weights and hash; loads the model on the way."""
    model, task, checkpoint = warm.model(request["run"], request.get("step"))
    weights = sum(value.numel() for value in model.state_dict().values())
    return {"step": checkpoint.step, "checkpoint": checkpoint.hash, "weights": weights, "task": type(task).__name__}


def answer(warm: Warm, handlers: Mapping[str, Handler], line: bytes) -> dict[str, Any]:
    """{"answer": ...} or {"error": one line}; a defect of ours keeps its traceback in the log."""
    try:
        question = json.loads(line)
        name, request = question["name"], question["request"]
        if name == "ping":
            return {"answer": {"pid": os.getpid()}}
        if name not in handlers:
            raise UnknownName("request", str(name), handlers)
        began = time.perf_counter()
        found = handlers[name](warm, request)
        json.dumps(found, allow_nan=False)
        return {"answer": found, "seconds": time.perf_counter() - began}
    except InterpError as error:
        return {"error": str(error)}
    except DEFECTS as error:
        traceback.print_exc()
        sys.stderr.flush()
        return {"error": f"a defect in the worker: {type(error).__name__}: {error}; its log has the details"}


def serve(store: Store, path: Path, idle: float = IDLE_SECONDS) -> None:
    """Listen until nobody has asked for `idle` seconds; returns at once where another worker holds the place."""
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(16)
        warm, handlers = Warm(store), Handlers()
        listener.settimeout(idle)
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    _one(warm, handlers, connection)
        except TimeoutError:
            path.unlink(missing_ok=True)


class Handlers(Mapping[str, Handler]):
    """The request functions by name, each loaded when first asked for; torch loads in a thread that it waits for."""

    def __init__(self) -> None:
        self._names = sorted(point.name for point in entry_points(group=GROUP))
        self._found: dict[str, Handler] = {}
        self._loading = threading.Thread(target=_load_torch, name="loading")
        self._loading.start()

    def __getitem__(self, name: str) -> Handler:
        self._loading.join()
        if name not in self._found:
            self._found[name] = load_entry(GROUP, name)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)


def _load_torch() -> None:
    import torch

    import interp.train  # noqa: F401

    torch.set_num_threads(1)


def _one(warm: Warm, handlers: Mapping[str, Handler], connection: socket.socket) -> None:
    """Read one line, answer it; one who only looked whether somebody is here, or has gone away, is no trouble."""
    try:
        connection.settimeout(5.0)
        line = b""
        while not line.endswith(b"\n") and len(line) <= LONGEST_REQUEST + 1:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            line += piece
        reply = answer(warm, handlers, line)
        connection.settimeout(30.0)
        connection.sendall(json.dumps(reply).encode() + b"\n")
    except (ConnectionError, TimeoutError) as error:
        print(f"worker: a question was not answered: {error}", file=sys.stderr, flush=True)


def _cached(kept: OrderedDict[Any, Any], key: Any, most: int, make: Callable[[], Any]) -> Any:
    """The value of a key, made if absent; the least recently used one beyond `most` goes."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return kept[key]


if __name__ == "__main__":
    serve(Store(sys.argv[1]), Path(sys.argv[2]))
