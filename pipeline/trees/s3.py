"""Objects of S3 fetched and put by obstore, whose requests are compiled code.

fsspec's s3fs takes 3 ms of Python for a request, more than the work on a small image; obstore takes
a fifth of that. It is given what s3fs found out: endpoint, region and credentials. s3fs stays for
all else (big files, the names in one directory), where obstore is not installed, and for a request
that fails with obstore.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOG = logging.getLogger("segmill")

# A busy store asks for seconds of patience, a restarted one for a minute.
RETRIES: Final[dict[str, Any]] = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(seconds=0.5),
        "max_backoff": timedelta(seconds=15),
        "base": 2,
    },
}
# What may take long is sending a fragment; an answer that doesn't begin, or stops, never comes.
PATIENCE: Final = {"connect_timeout": "10s", "timeout": "120s"}
READ_PATIENCE: Final = {"read_timeout": "15s"}
_PAGE: Final = 1000
Listed = tuple[str, int, "str | None", datetime]
"""Key, bytes, ETag, time of the last change."""
_UNFIT: Final = ("UnauthenticatedError", "NotSupportedError", "UnknownConfigurationKeyError")
_REFUSED: Final = "PermissionDeniedError"
"""What obstore calls a wrong signature, too; after a first success it concerns one object."""


class Objects:
    """What reads and writes the objects of one bucket; every answer may be None: ask fsspec."""

    __slots__ = ("_api", "_store", "_succeeded", "_told", "_uploads", "bucket")

    def __init__(self, bucket: str, api: Any, store: Any, uploads: Any) -> None:
        self.bucket, self._api, self._store, self._uploads = bucket, api, store, uploads
        self._succeeded = self._told = False

    @property
    def used(self) -> bool:
        """Whether obstore is still asked: no answer has told that it does not suit the bucket."""
        return self._store is not None

    @classmethod
    def of(cls, fs: Any, root: str, options: dict[str, Any]) -> Objects | None:
        """Return the objects of the bucket that a path of s3fs lies in; None where that can't be.

        Options given by hand stay with s3fs alone, which knows what they mean.
        """
        bucket = root.partition("/")[0]
        if options or not bucket or not is_s3(fs) or "@" in bucket or ":" in bucket:
            return None
        try:
            import botocore.session
            import obstore
            from obstore.store import S3Store
        except ImportError:
            return None
        try:
            session = botocore.session.get_session()
            if session.get_credentials() is None:  # a public bucket
                return None
            store, uploads = (
                S3Store(
                    bucket,
                    region=fs.s3.meta.region_name or "us-east-1",
                    credential_provider=partial(_credentials, session),
                    client_options={"allow_http": True, **patience},
                    retry_config=RETRIES,
                    **_endpoint(fs.s3.meta.endpoint_url),
                )
                for patience in (PATIENCE | READ_PATIENCE, PATIENCE)
            )
        except Exception as error:
            LOG.debug("%s: obstore is not used: %s", bucket, error)
            return None
        return cls(bucket, obstore, store, uploads)

    @property
    def in_order(self) -> bool:
        """Whether obstore lists the bucket by ascending keys; S3 Express lists them in none."""
        return self.used and not self.bucket.endswith("--x-s3")

    def get(self, path: str, start: int | None, end: int | None) -> bytes | None:
        """Return an object's bytes from `start` to before `end`; its last ones for start < 0.

        Raises:
            FileNotFoundError: it is absent.
        """
        wanted: Any = {}
        if start is not None and end is not None:
            wanted = {"range": (start, end)}
        elif start is not None:
            wanted = {"range": {"suffix": -start} if start < 0 else {"offset": start}}
        data: bytes | None = self._try(
            lambda: bytes(self._api.get(self._store, self._key(path), options=wanted).bytes())
        )
        return data

    def put(self, path: str, data: bytes) -> bool:
        """Write an object; tell whether that was done."""
        done = self._try(
            lambda: self._api.put(self._uploads, self._key(path), data, use_multipart=False)
        )
        return done is not None

    def holds(self, path: str) -> bool:
        """Tell whether an object lies below a path; False where obstore cannot tell.

        It takes one page of a listing; s3fs would list the whole directory.
        """
        if self._store is None:
            return False
        try:
            pages = self._api.list(self._store, self._key(path) or None, chunk_size=1)
            return bool(next(iter(pages), ()))
        except Exception:  # s3fs says what it is; to read objects may be allowed all the same
            return False

    def pages(self, path: str, after: str | None) -> Iterator[list[Listed]]:
        """Yield the objects below a path, those after a key, a thousand at a time, by their keys.

        A directory's marker (an object whose key ends with a slash) comes without the slash.

        Raises:
            Exception: the listing failed; it can be taken up after the last key that came.
        """
        prefix = self._key(path) or None
        for page in self._api.list(self._store, prefix, offset=after, chunk_size=_PAGE):
            yield [(o["path"], o["size"], o["e_tag"], o["last_modified"]) for o in page]

    def _key(self, path: str) -> str:
        return path.partition("/")[2]

    def _try(self, ask: Callable[[], Any]) -> Any:
        if self._store is None:
            return None
        try:
            answer = ask()
        except FileNotFoundError:
            raise
        except Exception as error:  # s3fs has its own way with what this may be
            self._step_back(error)
            return None
        self._succeeded = True
        return answer

    def _step_back(self, error: Exception) -> None:
        """Leave a request to s3fs, all that follow too if obstore cannot be used here at all."""
        name = type(error).__name__
        unfit = name in _UNFIT or (name == _REFUSED and not self._succeeded)
        if unfit:
            self._store = None
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        whole = "all requests" if unfit else "requests that fail with obstore"
        text = " ".join(str(error).split())[:300]
        LOG.log(level, "%s: s3fs takes over %s, slower: %s", self.bucket, whole, text)


def is_s3(fs: Any) -> bool:
    """Tell whether a file system of fsspec is s3fs."""
    return type(fs).__module__.partition(".")[0] == "s3fs"


def _credentials(session: Any) -> dict[str, Any]:
    """Return what boto finds in the environment, its files or the machine's role."""
    found = session.get_credentials().get_frozen_credentials()
    return {
        "access_key_id": found.access_key,
        "secret_access_key": found.secret_key,
        "token": found.token,
        "expires_at": datetime.now(UTC) + timedelta(minutes=10),  # boto renews what runs out
    }


def _endpoint(url: str) -> dict[str, Any]:
    """Return the options for a server that is not Amazon's own; that one is found by the region."""
    if url.rstrip("/").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return {}
    return {"endpoint": url, "virtual_hosted_style_request": False}
