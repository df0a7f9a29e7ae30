"""A Hugging Face hub of one process: the part of its HTTP interface that pushing and pulling a prompt needs.

Owns repositories with branches and commits, all in memory. Whoever sends the token `TOKEN` may do everything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of-the-test"


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # to the newest commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, changes: dict[str, bytes], message: str) -> str:
        files = self.commits.get(self.branches.get(branch, ""), {}) | changes
        oid = hashlib.sha1(repr((len(self.commits), message)).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid


class FakeHub:
    """Repositories by their id; `refuse` maps the start of a path to the status and error code it is answered with."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda path: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def make(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> Repository:
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit("main", files, "initial commit")
        return repository


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", document: Any = None) -> None:
        super().__init__(status, code, document)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.before(path)
        try:
            for start, (status, code) in self.hub.refuse.items():
                if path.startswith(start):
                    raise _RefusedError(status, code)
            status, headers, content = self._found(path.strip("/").split("/"), body)
        except _RefusedError as refused:
            status, code, document = refused.args
            headers, content = {"X-Error-Code": code, "X-Error-Message": "refused"}, json.dumps(document or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _found(self, parts: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if parts[0] == "uploads":
            self.hub.uploads[parts[1]] = body
            return 200, {}, b""
        return 200, {}, json.dumps(self._document(parts, body)).encode()

    def _file(self, repo_id: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        commit, files = self._files(self._repository(repo_id), revision)
        if name not in files:
            raise _RefusedError(404, "EntryNotFound")
        etag = hashlib.sha256(files[name]).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, files[name]

    def _document(self, parts: list[str], body: bytes) -> Any:
        if parts == ["api", "validate-yaml"]:
            return {"errors": [], "warnings": []}
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        repo_id, action = "/".join(parts[2:4]), parts[4:]
        repository = self._repository(repo_id)
        if not action or action[0] == "revision":
            commit, files = self._files(repository, action[1] if action else "main")
            siblings = [{"rfilename": name} for name in files]
            return {"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings}
        self._check_token()
        if action[0] == "branch":
            if action[1] in repository.branches:
                raise _RefusedError(409)
            repository.branches[action[1]] = repository.branches["main"]
            return {}
        _, files = self._files(repository, action[1])
        if action[0] == "preupload":
            return {"files": [_how(one["path"], files) for one in json.loads(body)["files"]]}
        assert action[0] == "commit"
        return self._commit(repository, repo_id, action[1], body)

    def _create(self, asked: dict[str, Any]) -> dict[str, str]:
        self._check_token()
        repo_id = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if repo_id in self.hub.repositories:
            raise _RefusedError(409, "", answer)
        self.hub.make(repo_id, {".gitattributes": b"*.safetensors"}, asked["visibility"] == "private")
        return answer

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._check_token()
        return {
            "transfer": "basic",
            "objects": [
                {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/uploads/{one['oid']}"}}}
                for one in asked["objects"]
            ],
        }

    def _commit(self, repository: Repository, repo_id: str, branch: str, body: bytes) -> dict[str, str]:
        changes, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                changes[value["path"]] = self.hub.uploads[value["oid"]]
        oid = repository.commit(branch, changes, message)
        return {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid}

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._has_token()):
            raise _RefusedError(404, "RepoNotFound")
        return repository

    @staticmethod
    def _files(repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _check_token(self) -> None:
        if not self._has_token():
            raise _RefusedError(401)


def _how(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Weights go to large file storage, as they do on the hub; the id of what is there spares an upload."""
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    found = files.get(path)
    oid = None
    if found is not None:
        git = b"blob %d\0" % len(found) + found
        oid = hashlib.sha256(found).hexdigest() if mode == "lfs" else hashlib.sha1(git).hexdigest()
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}
