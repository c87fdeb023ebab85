"""A small hub: what huggingface.co and its CDN answer to a download, on two local ports.

It counts the bytes of every file that it serves, and can be told to misbehave.
"""

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MEMBER = "hf_member"  # a token whose account has accepted every licence
STRANGER = "hf_stranger"  # a token whose account has accepted none
LARGE = ".safetensors"  # files that the hub redirects to its CDN


@dataclass
class Hub:
    """`repositories` maps a model id to its directory; the rest is how the server behaves."""

    repositories: dict[str, Path]
    gated: bool = False
    ranges: bool = True
    cut_after: int | None = None  # the CDN drops each connection after so many bytes of body
    cuts_left: int = 0
    stall_after: int | None = None  # it sends no more of a body than that, and keeps us waiting
    served: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    token_at_cdn: bool = False
    endpoint: str = ""
    cdn: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        servers = [_serve(_hub_handler(self)), _serve(_cdn_handler(self))]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
        try:
            yield self
        finally:
            self.closing.set()
            for server in servers:
                server.shutdown()
                server.server_close()


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        raise NotImplementedError

    def do_HEAD(self) -> None:
        self.do_GET()

    def refuse(self, status: int, code: str | None, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _hub_handler(hub: Hub) -> type[_Quiet]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if match is None or match[1] not in hub.repositories:
                # The hub does not tell a stranger whether a repository exists.
                return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            name, revision, file = match.groups()
            if token not in ("", MEMBER, STRANGER):
                return self.refuse(401, None, "Invalid credentials in Authorization header")
            if hub.gated and token != MEMBER:
                return self.refuse(403 if token else 401, "GatedRepo", f"{name} is restricted")
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            path = hub.repositories[name] / file
            if not path.is_file():
                return self.refuse(404, "EntryNotFound", f"{file} does not exist")
            content = b"" if file.endswith(LARGE) else path.read_bytes()
            etag = hashlib.sha256(str(path).encode() + content).hexdigest()
            self.send_response(302 if file.endswith(LARGE) else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Content-Length", str(len(content)))
            if file.endswith(LARGE):
                self.send_header("X-Linked-Size", str(path.stat().st_size))
                self.send_header("X-Linked-ETag", f'"{etag}"')
                self.send_header("Location", f"{hub.cdn}/{name}/{file}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
                hub.served[file] += len(content)
            return None

    return Handler


def _cdn_handler(hub: Hub) -> type[_Quiet]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} cdn{self.path}")
            hub.token_at_cdn |= "Authorization" in self.headers
            name, _, file = self.path[1:].rpartition("/")
            with (hub.repositories[name] / file).open("rb") as stream:
                self.answer(stream, file)

        def answer(self, stream: BinaryIO, file: str) -> None:
            size = stream.seek(0, os.SEEK_END)
            start, stop = 0, size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if asked and hub.ranges:
                start, stop = int(asked[1]), int(asked[2] or size - 1) + 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cuts_left and hub.cut_after is not None and stop - start > hub.cut_after:
                hub.cuts_left -= 1
                stop = start + hub.cut_after
                self.close_connection = True
            stream.seek(start)
            try:
                while start < stop:
                    chunk = stream.read(min(1 << 16, stop - start))
                    self.wfile.write(chunk)
                    start += len(chunk)
                    hub.served[file] += len(chunk)
                    if hub.stall_after is not None and hub.served[file] >= hub.stall_after:
                        hub.closing.wait()
                        self.close_connection = True
                        return
            except OSError:  # the other side hung up
                self.close_connection = True

    return Handler


def _serve(handler: type[_Quiet]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
