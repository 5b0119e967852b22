"""Requests to an object store: the only file that knows obstore, and all that the tier knows of S3, GCS, Azure and folders.

The library runs its requests on threads of its own and reports to an asyncio loop, which has a thread here and does nothing else.
That is what gives every request a deadline of its own: one that is given up is cancelled, its connection is closed, and no
thread stays behind with it. All calls wait, are for worker threads, and raise nothing but `ObjectStoreFailed`.
"""

import asyncio
import concurrent.futures
import contextlib
import importlib
import importlib.util
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from p2pkv.errors import LocalUseError, ObjectStoreFailed, ObjectStoreFailure
from p2pkv.tiers.object.location import Location, may_be_plain
from p2pkv.tiers.object.runs import is_object_name

T = TypeVar("T")

CLOCK: Final = "p2pkv-clock"
"""An object that is written to learn what time it is for the store, and read to learn whether it answers."""
REQUESTS_MAX: Final = 8
"""On their way at a time; each holds up to a run in memory."""
CONNECT_S: Final = 2.0
REQUEST_S_MAX: Final = 60.0
"""Of any request, whoever waits for it."""
_RETRIES: Final = 2
_RETRY_S: Final = 10.0
_PAGE: Final = 1000
_SECONDS: Final = "{:.3f}s"
_QUERY: Final = re.compile(r"\?\S*")
_TEXT_MAX: Final = 200
_NO_BUCKET: Final = re.compile("NoSuchBucket|ContainerNotFound")
_TOO_SHORT: Final = re.compile(" 416 |Requested range was invalid")
"""What servers and the library say of a stretch that begins behind an object's end; there is no error of its own for it."""

Shortage: TypeAlias = Literal["absent", "torn"]
"""What a store may answer instead of bytes: there is no such object, or it is not as long as it must be."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a store."""

    name: str
    size: int
    modified_s: float
    """On the store's clock, seconds of Unix time."""


def is_installed() -> bool:
    """Say whether the library is there."""
    return importlib.util.find_spec("obstore") is not None


class Pending(Generic[T]):
    """A request on its way. Whoever has one must ask for its result, or give it up."""

    def __init__(self, future: "concurrent.futures.Future[T]", began: threading.Event, store: str) -> None:
        self._future: Final = future
        self._began: Final = began
        self._store: Final = store

    def result(self, timeout_s: float) -> T:
        """Return what came of it.

        Raises:
            ObjectStoreFailed: nothing, or nothing within `timeout_s`; then it is given up.
        """
        try:
            return self._future.result(max(0.0, timeout_s))
        except (TimeoutError, concurrent.futures.CancelledError):
            self.give_up()
            raise ObjectStoreFailed("late" if self._began.is_set() else "busy", store=self._store) from None
        except BaseException as exc:
            if not isinstance(exc, Exception) and type(exc).__module__ != "pyo3_runtime":
                raise  # of this process; a panic of the library is not, and is no Exception either
            raise ObjectStoreFailed(_reason(exc), store=self._store, detail=_text(exc)) from exc

    def give_up(self) -> None:
        """Cancel it. Whether the store has done it is not known."""
        self._future.cancel()


class Bucket:
    """One place in an object store."""

    def __init__(
        self,
        location: Location,
        *,
        environment: Mapping[str, str] = os.environ,
        insecure: bool = False,
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        """Make ready; nothing is asked of the store yet.

        `environment` is looked at for plain HTTP only: the library takes its own from the process.

        Raises:
            LocalUseError: the library is not installed, the folder cannot be made, or a setting of the environment is wrong.
        """
        self.location: Final = location
        plain = may_be_plain(location, environment, insecure=insecure)
        try:
            self._lib: Final = importlib.import_module("obstore")
            self._store: Final = _open(importlib.import_module("obstore.store"), location, plain=plain)
        except ImportError as exc:
            raise LocalUseError("the object tier needs obstore", hint="pip install 'p2pkv[object]'") from exc
        except Exception as exc:
            raise LocalUseError(f"the object store cannot be used ({_text(exc)}): {location.url}") from exc
        self._requests: Final[Counter[str]] = Counter()
        """In the loop's thread."""
        self._slots: Final = asyncio.Semaphore(requests_max)
        self._loop: Final = asyncio.new_event_loop()
        self._thread: Final = threading.Thread(target=self._loop.run_forever, name="p2pkv-object", daemon=True)
        self._thread.start()

    def get(
        self, name: str, spans: Sequence[tuple[int, int]], whole_bytes: int
    ) -> Pending[list[memoryview] | Shortage]:
        """Ask for stretches of an object, in bytes from where to where, that is as long as `whole_bytes` or "torn"."""
        return self._begin(lambda: self._get(name, spans, whole_bytes))

    def put(self, name: str, data: memoryview, *, replace: bool) -> Pending[bool]:
        """Store an object; one that is there already is left alone without `replace`, and that is what False says."""
        return self._begin(lambda: self._put(name, data, replace=replace))

    def look(self, name: str) -> Pending[Listed | None]:
        """Ask what there is under a name."""
        return self._begin(lambda: self._look(name))

    def delete(self, names: Sequence[str]) -> Pending[None]:
        """Delete objects; those that are gone already are no failure."""
        return self._begin(lambda: self._delete(names))

    def pages(self, root: str, timeout_s: float) -> Iterator[list[Listed]]:
        """Yield all objects whose names begin with the folder `root`, some at a time; each page may take `timeout_s`."""
        stream = self._begin(lambda: self._stream(root)).result(timeout_s)
        while page := self._begin(lambda: self._page(stream)).result(timeout_s):
            yield page

    def delete_drafts(self, root: str, before_s: float) -> int:
        """Delete what killed writers left unfinished in a folder before a time, and say how many; other stores have no such thing.

        The library calls them NAME#1, NAME#2, and lists none.
        """
        if self.location.scheme != "file":
            return 0
        drafts = 0
        for path in Path(self.location.path, root).glob("*/*#*"):
            name, _, number = path.name.rpartition("#")
            with contextlib.suppress(OSError):  # gone meanwhile
                is_draft = number.isdecimal() and is_object_name(f"{root}/{path.parent.name}/{name}")
                if is_draft and path.stat().st_mtime < before_s:
                    path.unlink()
                    drafts += 1
        return drafts

    def requests(self) -> Counter[str]:
        """Return how many requests of each kind were made, without those that the library made again."""
        return self._requests.copy()

    def close(self) -> None:
        """Give up whatever is on its way. Calling it twice is harmless."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    # -- in the loop's thread -------------------------------------------------------------------------------------

    def _begin(self, make: Callable[[], Awaitable[T]]) -> Pending[T]:
        began = threading.Event()
        request = self._in_turn(make, began)
        try:
            future = asyncio.run_coroutine_threadsafe(request, self._loop)
        except RuntimeError as exc:  # closed
            request.close()
            future = concurrent.futures.Future()
            future.set_exception(exc)
        return Pending(future, began, self.location.url)

    async def _in_turn(self, make: Callable[[], Awaitable[T]], began: threading.Event) -> T:
        async with self._slots:
            began.set()
            return await make()

    async def _get(self, name: str, spans: Sequence[tuple[int, int]], whole_bytes: int) -> list[memoryview] | Shortage:
        found = await asyncio.gather(*(self._span(name, span, whole_bytes) for span in spans))
        parts = [part for part in found if isinstance(part, memoryview)]
        return parts if len(parts) == len(found) else next(part for part in found if not isinstance(part, memoryview))

    async def _span(self, name: str, span: tuple[int, int], whole_bytes: int) -> memoryview | Shortage:
        # Without a range the length is known before a byte is read; and an empty object is no error.
        options = {} if span == (0, whole_bytes) else {"range": span}
        self._requests["get"] += 1
        try:
            answer = await self._lib.get_async(self._store, name, options=options)
        except FileNotFoundError as exc:
            if _NO_BUCKET.search(str(exc)):
                raise
            return "absent"
        except Exception as exc:
            if _TOO_SHORT.search(str(exc)):
                return "torn"
            raise
        if answer.meta["size"] != whole_bytes:
            return "torn"
        data = memoryview(await answer.bytes_async())
        return data if len(data) == span[1] - span[0] else "torn"

    async def _put(self, name: str, data: memoryview, *, replace: bool) -> bool:
        mode = "overwrite" if replace else "create"
        self._requests["put"] += 1
        try:
            await self._lib.put_async(self._store, name, data, mode=mode, use_multipart=False)
        except self._lib.exceptions.AlreadyExistsError:
            return False
        return True

    async def _look(self, name: str) -> Listed | None:
        self._requests["look"] += 1
        try:
            return _listed(await self._lib.head_async(self._store, name))
        except FileNotFoundError:  # the answer to this request has no text that would tell of a missing bucket
            return None

    async def _delete(self, names: Sequence[str]) -> None:
        self._requests["delete"] += 1
        try:
            await self._lib.delete_async(self._store, list(names))
        except FileNotFoundError:
            for name in names:
                try:
                    await self._lib.delete_async(self._store, name)
                except FileNotFoundError:
                    continue

    async def _stream(self, root: str) -> AsyncIterator[Any]:
        return aiter(self._lib.list(self._store, root, chunk_size=_PAGE))

    async def _page(self, stream: AsyncIterator[Any]) -> list[Listed]:
        self._requests["list"] += 1
        try:
            page = await stream.__anext__()  # not anext(stream, ()), which knows only generators of Python
        except StopAsyncIteration:
            return []
        return [_listed(meta) for meta in page]

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _open(stores: Any, location: Location, *, plain: bool) -> Any:
    """Return the library's store; everything that it would take from its own defaults is said here."""
    if location.scheme == "file":
        Path(location.path).mkdir(mode=0o700, parents=True, exist_ok=True)
        return stores.LocalStore(location.path)
    kind = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[location.scheme]
    return kind(
        location.bucket,
        prefix=location.path or None,
        client_options={
            "allow_http": plain,
            "allow_invalid_certificates": False,
            "connect_timeout": _SECONDS.format(CONNECT_S),
            "timeout": _SECONDS.format(REQUEST_S_MAX),
        },
        retry_config={
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_S),
            "backoff": {
                "init_backoff": timedelta(seconds=0.05),
                "max_backoff": timedelta(seconds=0.5),
                "base": 2,
            },
        },
    )


def _listed(meta: Any) -> Listed:
    return Listed(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _reason(exc: BaseException) -> ObjectStoreFailure:
    if isinstance(exc, FileNotFoundError):
        return "no_bucket"
    return "refused" if type(exc).__name__ in {"PermissionDeniedError", "UnauthenticatedError"} else "failed"


def _text(exc: BaseException) -> str:
    """Return what an error says, without the query of a URL, which may be a secret."""
    return _QUERY.sub("?...", (str(exc).splitlines() or [""])[0])[:_TEXT_MAX]
