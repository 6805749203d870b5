"""A Hub on loopback: the part of the real HTTP protocol that an unmodified `huggingface_hub` speaks to upload and download."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

MULTIPART_FROM = 64_000  # bytes; the real Hub cuts at 5 GB
PART = 40_000


@dataclass
class File:
    """One version of a file; `lfs` files are known by SHA-256, others as git knows them."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Commits by hash, each a whole tree, and branches by name."""

    kind: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, File], branch: str) -> str:
        text = f"{len(self.commits)}" + "".join(f"{name} {file.sha256}" for name, file in sorted(tree.items()))
        identifier = hashlib.sha1(text.encode()).hexdigest()
        self.commits[identifier] = tree
        self.branches[branch] = identifier
        return identifier

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Hub:
    """State of the server, for tests to look at and to spoil.

    Args:
        tokens: user by token.
        approved: users who may read gated repositories.
        cut_uploads: so many uploads are cut in the middle, without an answer.
        cut_downloads: the same for downloads.
        requests: (method, path) of every request.
        uploaded: weights received by SHA-256, each time anew.
        ranges: first byte of every range that was asked for.
        messages: first line and rest of the text of every commit.
    """

    tokens: dict[str, str] = field(default_factory=lambda: {"hf_owner": "org", "hf_stranger": "stranger"})
    approved: set[str] = field(default_factory=lambda: {"org"})
    repositories: dict[str, Repository] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    cut_uploads: int = 0
    cut_downloads: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    uploaded: list[str] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    cdn_url: str = ""  # of another host, so the client must not send its token there


class Refusal(Exception):
    """An error answer: status, the Hub's error code, text."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self):
        self._content: bytes | None = None
        address = urlsplit(self.path)
        self.hub.requests.append((self.command, unquote(address.path)))
        try:
            for method, pattern, function in ROUTES:
                found = re.fullmatch(pattern, address.path)
                if found and self.command in method:
                    groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                    return function(self, parse_qs(address.query), **groups)
            raise Refusal(404, "", f"no route {self.command} {address.path}")
        except Refusal as refusal:
            self._body()  # or its rest would be read as the next request
            status, code, text = refusal.args
            self._answer(status, json.dumps({"error": text}).encode(), {"X-Error-Code": code, "X-Error-Message": text})

    def _body(self) -> bytes:
        if self._content is None:
            self._content = self._read_body()
        return self._content

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status: int = 200):
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.tokens:
            raise Refusal(401, "", "Invalid username or password.")
        return self.hub.tokens.get(token)

    def _repository(self, name: str, write: bool = False, files: bool = False) -> Repository:
        user, found = self._user(), self.hub.repositories.get(name)
        owner = name.split("/")[0]
        if found is None or (found.private and user != owner):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise Refusal(401 if user is None else 403, "", "You don't have the rights to write here")
        if files and found.gated and user not in self.hub.approved:
            raise Refusal(401 if user is None else 403, "GatedRepo", "Access to this model is restricted")
        return found

    def _tree(self, repository: Repository, revision: str) -> tuple[str, dict[str, File]]:
        identifier = repository.resolve(revision)
        if identifier is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return identifier, repository.commits[identifier]

    # The Hub's API

    def whoami(self, query):
        user = self._user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": []})

    def create(self, query):
        wanted = json.loads(self._body())
        user = self._user()
        owner = wanted.get("organization") or user
        name = f"{owner}/{wanted['name']}"
        if user is None or user != owner:
            raise Refusal(401 if user is None else 403, "", "You don't have the rights to create a repository here")
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        kind = wanted.get("type", "model")
        private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        repository = Repository(kind, private, sdk=wanted.get("sdk"))
        repository.commit({".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "main")
        self.hub.repositories[name] = repository
        self._json({"url": url, "name": name, "id": name})

    def validate_yaml(self, query):
        wanted = json.loads(self._body())
        metadata = yaml.safe_load(wanted["content"].split("---")[1])
        errors = [] if isinstance(metadata, dict) else [{"message": "metadata must be an object"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def branch(self, query, kind, name, revision):
        repository = self._repository(name, write=True)
        self._body()
        if revision in repository.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repository.branches[revision] = repository.branches["main"]
        self._json({})

    def info(self, query, kind, name, revision="main"):
        repository = self._repository(name)
        identifier, tree = self._tree(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(tree)]
        gated = "manual" if repository.gated else False
        self._json(
            {
                "id": name,
                "sha": identifier,
                "private": repository.private,
                "gated": gated,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, query, kind, name, revision, folder=""):
        """Files and folders below a folder, or directly in it."""
        _, tree = self._tree(self._repository(name), revision)
        start = f"{folder}/" if folder else ""
        inside = {path: file for path, file in sorted(tree.items()) if path.startswith(start)}
        if folder and not inside:
            raise Refusal(404, "EntryNotFound", f"no folder {folder}")
        folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {"."}
        entries = [self._entry(path, file) for path, file in inside.items()]
        entries += [self._folder(path) for path in sorted(folders) if path.startswith(start) and path != folder]
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"][len(start) :]]
        self._json(entries)

    def paths_info(self, query, kind, name, revision):
        _, tree = self._tree(self._repository(name), revision)
        body = self._body().decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        found = [self._entry(path, tree[path]) for path in wanted if path in tree]
        for path in wanted:
            if path not in tree and any(file.startswith(f"{path}/") for file in tree):
                found.append(self._folder(path))
        self._json(found)

    @staticmethod
    def _folder(path: str) -> dict:
        return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}

    @staticmethod
    def _entry(path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob_id}
        if file.lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        return entry

    def preupload(self, query, kind, name, revision):
        _, tree = self._tree(self._repository(name, write=True), revision)
        answers = []
        for file in json.loads(self._body())["files"]:
            base64.b64decode(file["sample"], validate=True)
            there = tree.get(file["path"])
            answer = {"path": file["path"], "shouldIgnore": False, "oid": None}
            large = file["path"].endswith((".safetensors", ".png", ".parquet"))
            answer["uploadMode"] = "lfs" if large else "regular"
            if there is not None:
                answer["oid"] = there.sha256 if there.lfs else there.blob_id
            answers.append(answer)
        self._json({"files": answers})

    def batch(self, query, name):
        self._repository(name, write=True)
        request = json.loads(self._body())
        assert request["hash_algo"] == "sha256" and request["operation"] == "upload"
        objects = []
        for wanted in request["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.store:
                upload = {"href": f"{self.hub.url}/lfs/{oid}"}
                if size > MULTIPART_FROM:
                    count = -(-size // PART)
                    parts = {f"{n + 1:05d}": f"{self.hub.url}/lfs/{oid}/{n + 1}" for n in range(count)}
                    upload = {"href": f"{self.hub.url}/complete/{oid}", "header": {"chunk_size": str(PART), **parts}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify/{oid}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, query, oid, part=None):
        if self.hub.cut_uploads:
            self.hub.cut_uploads -= 1
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            self.connection.close()
            return
        content = self._body()
        if part is not None:
            self.hub.parts[oid, int(part)] = content
        elif hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "", "content does not match its hash")
        else:
            self._keep(oid, content)
        self._answer(200, headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def _keep(self, oid: str, content: bytes):
        self.hub.store[oid] = content
        self.hub.uploaded.append(oid)

    def complete(self, query, oid):
        parts = json.loads(self._body())["parts"]
        content = b"".join(self.hub.parts[oid, part["partNumber"]] for part in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "", "content does not match its hash")
        self._keep(oid, content)
        self._json({})

    def verify(self, query, oid):
        wanted = json.loads(self._body())
        if len(self.hub.store.get(oid, b"")) != wanted["size"]:
            raise Refusal(404, "", "not uploaded")
        self._json({})

    def commit(self, query, kind, name, revision):
        repository = self._repository(name, write=True)
        _, tree = self._tree(repository, revision)
        tree = dict(tree)
        for line in self._body().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                self.hub.messages.append((value["summary"], value["description"]))
            elif key == "file":
                tree[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.store:
                    raise Refusal(400, "", f"{value['path']}: its content was not uploaded")
                tree[value["path"]] = File(self.hub.store[value["oid"]], True)
            elif key == "deletedFile":
                del tree[value["path"]]
        proposed = "create_pr" in query
        identifier = repository.commit(tree, "refs/pr/1" if proposed else revision)
        url = f"{self.hub.url}/{name}/commit/{identifier}"
        answer = {"success": True, "commitOid": identifier, "commitUrl": url, "hookOutput": ""}
        self._json(answer | ({"pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"} if proposed else {}))

    def resolve(self, query, name, revision, path):
        repository = self._repository(name, files=True)
        identifier, tree = self._tree(repository, revision)
        commit = {"X-Repo-Commit": identifier}
        if path not in tree:
            headers = commit | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._answer(404, b"Entry not found", headers)
        file = tree[path]
        if file.lfs:  # large files lie elsewhere
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
            return self._answer(302, headers=commit | linked | {"Location": f"{self.hub.cdn_url}/cdn/{file.sha256}"})
        self._send(file.content, commit | {"ETag": f'"{file.blob_id}"'})

    def cdn(self, query, oid):
        assert "Authorization" not in self.headers
        self._send(self.hub.store[oid], {"ETag": f'"{oid}"'})

    def _send(self, content: bytes, headers: dict[str, str]):
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = headers | {"Accept-Ranges": "bytes"}
        status, start, stop = 200, 0, len(content)
        if found:
            status, start = 206, int(found[1])
            self.hub.ranges.append(start)
            stop = int(found[2]) + 1 if found[2] else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        if self.command == "GET" and self.hub.cut_downloads and len(content) > 10_000:
            self.hub.cut_downloads -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(content[start : start + (stop - start) // 2])
            self.close_connection = True
            return
        self._answer(status, content[start:stop], headers)


NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>model|space|dataset)s/{NAME}"
PREFIX = r"(?:/spaces|/datasets)?"
ROUTES = [
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("POST",), rf"{API}/branch/(?P<revision>[^/]+)", Handler.branch),
    (("GET",), rf"{API}", Handler.info),
    (("GET",), rf"{API}/revision/(?P<revision>[^/]+)", Handler.info),
    (("GET",), rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (("POST",), rf"{API}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (("POST",), rf"{API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (("POST",), rf"{API}/commit/(?P<revision>[^/]+)", Handler.commit),
    (("POST",), rf"{PREFIX}/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", Handler.put),
    (("POST",), r"/complete/(?P<oid>[0-9a-f]{64})", Handler.complete),
    (("POST",), r"/verify/(?P<oid>[0-9a-f]{64})", Handler.verify),
    (("GET", "HEAD"), r"/cdn/(?P<oid>[0-9a-f]{64})", Handler.cdn),
    (("GET", "HEAD"), rf"{PREFIX}/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


def start_hub() -> tuple[Hub, ThreadingHTTPServer]:
    """A running Hub; `server.shutdown()` ends it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url, hub.cdn_url = (f"http://{host}:{server.server_address[1]}" for host in ("127.0.0.1", "localhost"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server
