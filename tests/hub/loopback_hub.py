"""A Hub on this machine: the endpoints that `huggingface_hub` uses to log in, make repositories, push and load, over HTTP, with
repositories in memory, and troubles on request. It does not speak Xet, so whoever talks to it sets HF_HUB_DISABLE_XET."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub.utils.sha import git_hash

TOKEN = "hf_ThisIsNoTokenOfAnyone"
# Larger files are stored apart, as the Hub stores binary ones.
MAX_REGULAR_BYTES = 1_000_000
LFS_ENDINGS = (".safetensors", ".bin", ".pkl", ".pt", ".pth", ".png")


@dataclass
class Repository:
    """What is in a repository, by path, and what was done to it."""

    private: bool = False
    gated: bool = False
    writers: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return hashlib.sha1(json.dumps([commit["summary"] for commit in self.commits]).encode()).hexdigest()


@dataclass
class Trouble:
    """What happens to requests of a method (any, if empty) to paths that a pattern is found in, so many times."""

    method: str
    path: re.Pattern
    status: int | None  # None: the connection is dropped
    headers: dict[str, str]
    body: dict[str, Any]
    times: int
    before: Callable[[], None]


class LoopbackHub(ThreadingHTTPServer):
    """
    The server; a context manager, which serves while it is entered.

    `users` has the name, role and organizations of each token's user, `repositories` what was pushed, `requests` what was asked
    for, `(METHOD, path)` in order, `unknown` what of it there is no endpoint for.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.users: dict[str, dict[str, Any]] = {}
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # LFS objects, by their SHA-256
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.troubles: list[Trouble] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add_user(self, token: str, name: str, role: str = "write", organizations: tuple[str, ...] = ()) -> None:
        self.users[token] = {"name": name, "role": role, "organizations": organizations}

    def fail(
        self,
        path: str,
        status: int | None,
        method: str = "",
        times: int = 1_000_000,
        headers: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Answer so from now on, `times` times, when `before` has returned; without a status, drop the connection."""
        self.troubles.append(Trouble(method, re.compile(path), status, headers or {}, body or {}, times, before))

    def next_trouble(self, method: str, path: str) -> Trouble | None:
        with self.lock:
            for trouble in self.troubles:
                if trouble.times and trouble.method in ("", method) and trouble.path.search(path):
                    trouble.times -= 1
                    return trouble
        return None

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Nothing: clients that went away are part of the tests."""


class Refusal(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, error: str, code: str | None = None):
        self.status, self.error, self.code = status, error, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *arguments) -> None:
        """Nothing: standard error is the programs'."""

    def do_GET(self) -> None:
        self.answer_request()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer_request(self) -> None:
        address = urlsplit(self.path)
        self.query, path = parse_qs(address.query), unquote(address.path)
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.content = self.read_chunks()
        with self.server.lock:
            self.server.requests.append((self.command, path))
        trouble = self.server.next_trouble(self.command, path)
        if trouble is not None:
            trouble.before()
            if trouble.status is None:
                self.close_connection = True
                self.connection.close()
            else:
                self.answer(trouble.status, trouble.body, trouble.headers)
            return
        for method, pattern, endpoint in ENDPOINTS:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                try:
                    endpoint(self, **found.groupdict())
                except Refusal as refusal:
                    headers = {"X-Error-Message": refusal.error}
                    self.answer(refusal.status, {"error": refusal.error}, headers | self.code(refusal))
                return
        if path not in OF_NO_MATTER:
            self.server.unknown.append((self.command, path))
        self.answer(404, {"error": "Not Found"})

    @staticmethod
    def code(refusal: Refusal) -> dict[str, str]:
        return {"X-Error-Code": refusal.code} if refusal.code else {}

    def read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self) -> Any:
        return json.loads(self.content)

    def user(self) -> dict[str, Any]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.users:
            raise Refusal(401, "Invalid username or password." if token else "Invalid credentials.")
        return self.server.users[token]

    def repository(self, name: str, write: bool = False) -> Repository:
        """One that whoever asks may read, or write to."""
        repository = self.server.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.server.users.get(token)
        writes = repository is not None and user is not None and user["name"] in repository.writers
        if repository is None or (repository.private and not writes):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if repository.gated and not writes:
            raise Refusal(403, f"Access to model {name} is restricted", "GatedRepo")
        if write and (not writes or user["role"] == "read"):
            raise Refusal(403, "Forbidden: pass a token with write access")
        return repository

    # The endpoints, by what they are for

    def who_am_i(self) -> None:
        user = self.user()
        self.answer(
            200,
            {
                "type": "user",
                "name": user["name"],
                "orgs": [{"name": name} for name in user["organizations"]],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user["role"]}},
            },
        )

    def create(self) -> None:
        user, asked = self.user(), self.json()
        namespace = asked.get("organization") or user["name"]
        name = f"{namespace}/{asked['name']}"
        if namespace not in (user["name"], *user["organizations"]) or user["role"] == "read":
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {namespace!r}")
        answer = {"url": f"{self.server.url}/{name}", "name": name}
        if name in self.server.repositories:
            self.answer(409, {"error": "You already created this model repo", **answer})
            return
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.server.repositories[name] = Repository(bool(private), writers=(user["name"],))
        self.server.repositories[name].files[".gitattributes"] = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.answer(200, answer)

    def check_access(self, name: str, write: str | None) -> None:
        self.user()
        self.repository(name, write=write is not None)
        self.answer(200, {})

    def info(self, name: str, revision: str | None = None) -> None:
        repository = self.repository(name)
        self.check_revision(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        self.answer(
            200,
            {"_id": "0", "id": name, "modelId": name, "private": repository.private, "gated": repository.gated}
            | {"sha": repository.head, "tags": [], "downloads": 0, "siblings": siblings},
        )

    def check_revision(self, repository: Repository, revision: str | None) -> None:
        if revision not in (None, "main", repository.head):
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")

    def validate_card(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        files = []
        for file in self.json()["files"]:
            path = file["path"]
            mode = "lfs" if file["size"] > MAX_REGULAR_BYTES or path.endswith(LFS_ENDINGS) else "regular"
            there = repository.files.get(path)
            oid = None if there is None else oid_of(there, mode == "lfs")
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def lfs_batch(self, name: str) -> None:
        self.repository(name, write=True)
        objects = []
        for wanted in self.json()["objects"]:
            actions = {
                "upload": {"href": f"{self.server.url}/stored/{wanted['oid']}"},
                "verify": {"href": f"{self.server.url}/verify/{name}"},
            }
            is_there = wanted["oid"] in self.server.stored
            objects.append({**wanted, **({} if is_there else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refusal(400, "not the object that was announced")
        with self.server.lock:
            self.server.stored[oid] = self.content
        self.answer(200)

    def verify(self, name: str) -> None:
        asked = self.json()
        if len(self.server.stored.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "no such object")
        self.answer(200, {})

    def commit(self, name: str, revision: str) -> None:
        repository = self.repository(name, write=True)
        lines = [json.loads(line) for line in self.content.splitlines()]
        files = dict(repository.files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.stored:
                    raise Refusal(400, f"LFS pointer of {value['path']} points to nothing")
                files[value["path"]] = self.server.stored[value["oid"]]
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        changed = [line["value"].get("path") for line in lines if line["key"] != "header"]
        with self.server.lock:
            repository.files = files
            repository.commits.append({**lines[0]["value"], "paths": changed})
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/0", "commitOid": repository.head})

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        repository = self.repository(name)
        self.check_revision(repository, revision)
        below = f"{folder}/" if folder else ""
        entries = [entry(path, content) for path, content in repository.files.items() if path.startswith(below)]
        if below and not entries:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            entries = [item for item in entries if "/" not in item["path"].removeprefix(below)]
        self.answer(200, entries)

    def paths_info(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        paths = parse_qs(self.content.decode()).get("paths", [])
        self.answer(200, [entry(path, repository.files[path]) for path in paths if path in repository.files])

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        self.check_revision(repository, revision)
        if path not in repository.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = repository.files[path]
        etag = f'"{oid_of(content, path.endswith(LFS_ENDINGS))}"'
        headers = {"ETag": etag, "X-Repo-Commit": repository.head, "Accept-Ranges": "bytes"}
        self.answer(200, content, headers)


def oid_of(content: bytes, is_lfs: bool) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs else git_hash(content)


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it."""
    listed = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path.endswith(LFS_ENDINGS):
        listed["lfs"] = {"oid": oid_of(content, True), "size": len(content), "pointerSize": 134}
    return listed


NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
# What the library asks the real Hub about itself.
OF_NO_MATTER = ("/api/agent-harnesses",)
ENDPOINTS: list[tuple[tuple[str, ...], str, Callable]] = [
    (("GET",), r"/api/whoami-v2", Handler.who_am_i),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate_card),
    (("GET",), rf"/api/models/{NAME}/auth-check(?P<write>/write)?", Handler.check_access),
    (("GET",), rf"/api/models/{NAME}(/revision/{REVISION})?", Handler.info),
    (("POST",), rf"/api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/stored/(?P<oid>[0-9a-f]+)", Handler.store),
    (("POST",), rf"/verify/{NAME}", Handler.verify),
    (("POST",), rf"/api/models/{NAME}/commit/{REVISION}", Handler.commit),
    (("GET",), rf"/api/models/{NAME}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    (("POST",), rf"/api/models/{NAME}/paths-info/{REVISION}", Handler.paths_info),
    (("GET", "HEAD"), rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]


def environment_for(url: str, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Variables by which another process takes a server for the Hub, with an empty cache."""
    variables = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**variables, **({"HF_TOKEN": token} if token else {})}


def wait_for_pushes() -> None:
    """Until what a program has left on its way is over: it would get into the next test's connections."""
    for thread in threading.enumerate():
        if thread.name == "push to the Hub":
            thread.join()
