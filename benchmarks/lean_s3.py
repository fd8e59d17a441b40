"""A lean S3 server over one directory: GET by ranges, HEAD, PUT, DELETE, ListObjectsV2; no more.

    python benchmarks/lean_s3.py ROOT --latency 0.05

moto takes 5 ms of Python for a request, more than the work that is to be measured; this takes a
tenth of it. Every answer waits `latency` seconds, many at once, as a bucket far away does. It
prints its port; a GET of /-/count answers with the number of requests by method.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
from collections import Counter
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
STAMP = "2026-01-01T00:00:00.000Z"
HTTP_STAMP = "Thu, 01 Jan 2026 00:00:00 GMT"


class Bucket:
    """The files below a directory, as /bucket/key; `keys` are held, as a server's index is."""

    def __init__(self, root: str, latency: float) -> None:
        self.root, self.latency, self.count = root, latency, Counter[str]()
        self.keys: dict[str, int] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                self.keys[os.path.relpath(path, root)] = os.path.getsize(path)

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        """Return a whole response."""
        url = urlsplit(target)
        if url.path == "/-/count":
            return _response(200, repr(dict(self.count)).encode())
        self.count[method] += 1
        _, _, key = unquote(url.path).lstrip("/").partition("/")
        if not key and method == "HEAD":
            return _response(200, b"")
        if not key:
            return self._list(parse_qs(url.query, keep_blank_values=True))
        if method == "PUT":
            return self._put(key, body)
        if method == "DELETE":
            self.keys.pop(key, None)
            return _response(204, b"")
        if key not in self.keys:
            return _response(404, b"" if method == "HEAD" else _error("NoSuchKey"))
        return self._get(method, key, headers)

    def _get(self, method: str, key: str, headers: dict[str, str]) -> bytes:
        size, wanted = self.keys[key], headers.get("range", "")
        extra = [f'ETag: "{_etag(key, size)}"', f"Last-Modified: {HTTP_STAMP}"]
        if method == "HEAD":
            return _response(200, b"", extra, length=size)
        if not wanted:
            return _response(200, self._read(key, 0, size), extra)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size:
            return _response(416, _error("InvalidRange"))
        extra.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
        return _response(206, self._read(key, start, stop), extra)

    def _read(self, key: str, start: int, stop: int) -> bytes:
        with open(os.path.join(self.root, key), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def _put(self, key: str, body: bytes) -> bytes:
        path = os.path.join(self.root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(body)
        self.keys[key] = len(body)
        return _response(200, b"", [f'ETag: "{_etag(key, len(body))}"'])

    def _list(self, query: dict[str, list[str]]) -> bytes:
        """Answer ListObjectsV2, by pages of a thousand."""
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        most = min(PAGE, int(query.get("max-keys", [str(PAGE)])[0]))
        found: dict[str, int | None] = {}
        for key in sorted(self.keys):
            if key.startswith(prefix):
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    found[prefix + rest.split(delimiter)[0] + delimiter] = None
                else:
                    found[key] = self.keys[key]
        rows = [(k, s) for k, s in found.items() if k > after]
        page, more = rows[:most], len(rows) > most
        parts = [f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>"]
        if more:
            parts.append(f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>")
        for key, size in page:
            if size is None:
                parts.append(f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>")
            else:
                parts.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{STAMP}</LastModified>"
                    f"<ETag>&quot;{_etag(key, size)}&quot;</ETag><Size>{size}</Size></Contents>"
                )
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        text = f"<ListBucketResult {space}>{''.join(parts)}</ListBucketResult>"
        return _response(200, text.encode(), ["Content-Type: application/xml"])


def _etag(key: str, size: int) -> str:
    return hashlib.md5(f"{key}{size}".encode()).hexdigest()


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def _response(
    status: int, body: bytes, extra: list[str] | None = None, length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    head = [f"HTTP/1.1 {status} x", f"Content-Length: {size}", *(extra or [])]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One connection: requests one after the other, each answered after the latency."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.buffer = bucket, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if headers.pop("expect", None):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = int(headers.get("content-length", "0"))
        if len(self.buffer) < end + 4 + size:
            return
        body = bytes(self.buffer[end + 4 : end + 4 + size])
        del self.buffer[: end + 4 + size]
        method, target, _ = first.split(" ")
        answer = self.bucket.answer(method, target, headers, body)
        loop = asyncio.get_running_loop()
        loop.call_later(self.bucket.latency, self._send, answer)

    def _send(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)


async def serve(root: str, latency: float) -> None:
    """Serve until killed."""
    bucket, loop = Bucket(root, latency), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(bucket), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--latency", type=float, default=0.0)
    args = parser.parse_args()
    asyncio.run(serve(args.root, args.latency))
