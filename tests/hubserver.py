"""A small Hub on 127.0.0.1: enough of its protocol for models and data, and every way to go wrong.

``HubServer`` serves directories as repositories, those named ``datasets/OWNER/NAME`` as data sets.
Large files (weights) are in LFS: listed with their SHA-256, served through a redirect, as the real
one does. ``faults`` breaks single files.
"""

import hashlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")
PAGE = b"<!DOCTYPE html><html><title>Welcome to our hotel</title>Please log in</html>"
LISTING = "listing"  # a fault under this name meets the API instead of a file
#: reset, truncate, stall, interrupt (stalls, and the test's process gets Ctrl-C), page, wrong,
#: long, whole; or an HTTP status.
Fault = str | int


@dataclass
class HubServer:
    """What is served, what goes wrong, and what was asked for."""

    folders: dict[str, Path] = field(default_factory=dict)
    #: File name → faults, one taken by each request; a lone one is repeated for ever.
    faults: dict[str, list[Fault] | Fault] = field(default_factory=dict)
    #: Repository → status and X-Error-Code for its files (its listing is public).
    gated: dict[str, tuple[int, str]] = field(default_factory=dict)
    #: Names that the listing adds, and how large it says that files are.
    listed: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    tells_digests: bool = True
    #: GET requests for files: path in the repository and the first byte wanted.
    fetched: list[tuple[str, int]] = field(default_factory=list)
    #: Ends the waiting of stalled answers.
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @property
    def names(self) -> list[str]:
        """Files that were fetched."""
        return [name for name, _ in self.fetched]

    def fault(self, name: str) -> Fault | None:
        """What goes wrong with the request that has just come in."""
        planned = self.faults.get(name)
        if isinstance(planned, list):
            return planned.pop(0) if planned else None
        return planned


class Handler(BaseHTTPRequestHandler):
    """Answers for one ``HubServer``."""

    hub: HubServer

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        address = urlsplit(self.path)
        words = unquote(address.path).strip("/").split("/")
        is_api, is_cdn = words[0] == "api", words[0] == "cdn"
        words = words[is_api or is_cdn :]
        kind = "datasets/" if words[:1] == ["datasets"] else ""
        if kind or (is_api and words[:1] == ["models"]):
            words = words[1:]
        repo, rest = kind + "/".join(words[:2]), words[2:]
        if is_api and rest[:1] in ([], ["revision"]):
            if self._is_known(repo, "/".join(rest[1:]) or "main"):
                self._list(repo, with_digests="blobs" in parse_qs(address.query))
        elif is_cdn:
            self._send_file(repo, "/".join(rest))
        elif is_api or len(rest) < 3:  # what the Hub's client asks besides
            self._send(404, b"", {})
        elif self._is_known(repo, rest[1]) and not self._is_gated(repo):
            self._resolve(repo, "/".join(rest[2:]))

    def _is_known(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.folders:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _is_gated(self, repo: str) -> bool:
        status, code = self.hub.gated.get(repo, (0, ""))
        if status:
            self._send(status, b"", {"X-Error-Code": code})
        return bool(status)

    def _list(self, repo: str, *, with_digests: bool) -> None:
        fault = self.hub.fault(LISTING)
        if fault is not None:
            self._break(fault)
            return
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in self.hub.listed]
        folder = self.hub.folders[repo]
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            entry: dict[str, Any] = {"rfilename": name}
            if with_digests and self.hub.tells_digests:
                size = self.hub.sizes.get(name, path.stat().st_size)
                entry |= {"size": size, "blobId": git_digest(path)}
                if path.name.endswith(LARGE):
                    entry["lfs"] = {"sha256": sha256(path), "size": size, "pointerSize": 134}
            siblings.append(entry)
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, name: str) -> None:
        path = self.hub.folders[repo] / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif not name.endswith(LARGE):
            self._send_file(repo, name)
        else:
            linked = {
                "X-Linked-Etag": f'"{sha256(path)}"',
                "X-Linked-Size": str(path.stat().st_size),
                "Location": f"{self.hub.url}/cdn/{repo}/{name}",
            }
            self._send(302, b"", linked)

    def _send_file(self, repo: str, name: str) -> None:
        path = self.hub.folders[repo] / name
        raw, wanted = path.read_bytes(), self.headers.get("Range", "")
        begin = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        fault = None
        if self.command == "GET":
            self.hub.fetched.append((name, begin))
            fault = self.hub.fault(name)
        if isinstance(fault, int) or fault == "page":
            self._break(fault)
            return
        headers = {"ETag": f'"{git_digest(path)}"'}
        if fault == "whole":  # as a server that does not know ranges
            begin, wanted = 0, ""
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{len(raw) - 1}/{len(raw)}"
        body = raw[begin:]
        if fault == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "long":
            body += b"more"
        is_cut = fault in ("reset", "truncate", "stall", "interrupt")
        cut = len(body) // 2 if is_cut else len(body)
        self._send(206 if wanted else 200, body, headers, cut=cut)
        if fault == "interrupt":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if fault in ("stall", "interrupt"):
            self.hub.released.wait(60)
        if is_cut:
            self.close_connection = True
        if fault == "reset":
            time.sleep(0.05)  # else the reset overtakes the bytes
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _break(self, fault: Fault) -> None:
        if isinstance(fault, int):
            self._send(fault, b"", {})
        else:
            self._send(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        common = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        for name, value in (common | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(folders: dict[str, Path]) -> Iterator[HubServer]:
    """A server for ``folders`` as long as the block lasts."""
    hub = HubServer(dict(folders))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME do, for a client that is imported already."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")[2]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{{template}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("specx.checkpoints.repository.PAUSES_S", (0.0, 0.0))
    huggingface_hub.close_session()


def sha256(path: Path) -> str:
    """The digest of a large file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_digest(path: Path) -> str:
    """Git's name for a small file's content."""
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
