"""What the loopback Hub does for each address: the part of the Hub's protocol that models need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import yaml
from loopback_repos import Blob, Collection, Refused, Repo
from loopback_requests import Answer, Request

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub


def _whoami(hub: LoopbackHub, request: Request) -> Answer:
    user = hub.user(request)
    if user is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.namespaces[1:]]
    role = "write" if user.may_write else "read"
    auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
    return Answer({"type": "user", "name": user.name, "email": f"{user.name}@mail.example", "orgs": orgs, "auth": auth})


def _validate_yaml(hub: LoopbackHub, request: Request) -> Answer:
    content = request.json()["content"]
    found = re.match(r"---\s*\n(.*?)\n---", content, re.DOTALL)
    try:
        data = yaml.safe_load(found.group(1)) if found else {}
    except yaml.YAMLError as error:
        return Answer({"errors": [{"message": f"not YAML: {error}"}], "warnings": []}, 400)
    if not isinstance(data, dict):
        return Answer({"errors": [{"message": "metadata must be a mapping"}], "warnings": []}, 400)
    return Answer({"errors": [], "warnings": []})


def _create_repo(hub: LoopbackHub, request: Request) -> Answer:
    asked = request.json()
    user = hub.user(request)
    namespace = asked.get("organization") or (user.name if user else "")
    hub.may_write(request, namespace)
    repo_id = f"{namespace}/{asked['name']}"
    answer = {"url": f"{hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in hub.repos:
        return Answer({**answer, "error": "You already created this model repo"}, 409)
    hub.repos[repo_id] = Repo(repo_id, asked.get("visibility") == "private")
    return Answer(answer)


def _model_info(hub: LoopbackHub, request: Request, repo_id: str, revision: str = "main") -> Answer:
    return Answer(hub.readable(request, repo_id).info(revision, blobs="blobs" in request.query))


def _tree(hub: LoopbackHub, request: Request, repo_id: str, revision: str, folder: str = "") -> Answer:
    recursive = request.query.get("recursive", ["False"])[0].lower() in {"true", "1"}
    return Answer(hub.readable(request, repo_id).tree(revision, folder, recursive=recursive))


def _paths_info(hub: LoopbackHub, request: Request, repo_id: str, revision: str) -> Answer:
    files = hub.readable(request, repo_id).at(revision).files
    paths = parse_qs(request.body.decode()).get("paths", [])
    return Answer([files[path].described(path) for path in paths if path in files])


def _refs(hub: LoopbackHub, request: Request, repo_id: str) -> Answer:
    return Answer(hub.readable(request, repo_id).refs())


def _commits(hub: LoopbackHub, request: Request, repo_id: str, revision: str) -> Answer:
    history = hub.readable(request, repo_id).branches[revision]
    return Answer([commit.described() for commit in reversed(history)])


def _create_branch(hub: LoopbackHub, request: Request, repo_id: str, branch: str) -> Answer:
    repo = hub.writable(request, repo_id)
    if branch in repo.branches:
        raise Refused(409, f"Reference already exists: {branch}")
    repo.branches[branch] = repo.history(request.json().get("startingPoint", "main"))
    return Answer({})


def _create_tag(hub: LoopbackHub, request: Request, repo_id: str, revision: str) -> Answer:
    repo = hub.writable(request, repo_id)
    tag = request.json()["tag"]
    if tag in repo.tags:
        raise Refused(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = repo.at(revision)
    return Answer({})


def _delete_tag(hub: LoopbackHub, request: Request, repo_id: str, tag: str) -> Answer:
    if hub.writable(request, repo_id).tags.pop(tag, None) is None:
        raise Refused(404, f"Invalid rev id: {tag}", "RevisionNotFound")
    return Answer({})


def _preupload(hub: LoopbackHub, request: Request, repo_id: str, revision: str) -> Answer:
    repo = hub.writable(request, repo_id)
    there = repo.at(revision).files
    files = []
    for asked in request.json()["files"]:
        path = asked["path"]
        mode = repo.upload_mode(path, asked["size"], base64.b64decode(asked["sample"]))
        oid = there[path].etag if path in there else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": files})


def _lfs_batch(hub: LoopbackHub, request: Request, repo_id: str) -> Answer:
    repo = hub.writable(request, repo_id)
    objects = []
    for asked in request.json()["objects"]:
        entry: dict = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repo.large:
            href = f"{hub.endpoint}/lfs/{repo_id}/{asked['oid']}"
            entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append(entry)
    return Answer({"transfer": "basic", "objects": objects})


def _lfs_upload(hub: LoopbackHub, request: Request, repo_id: str, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, f"The SHA-256 of these {len(request.body)} bytes is not {oid}")
    hub.repos[repo_id].large[oid] = request.body
    return Answer()


def _lfs_verify(hub: LoopbackHub, request: Request, repo_id: str, oid: str) -> Answer:
    asked, data = request.json(), hub.writable(request, repo_id).large.get(oid)
    if data is None or len(data) != asked["size"] or asked["oid"] != oid:
        raise Refused(404, f"{oid} was not uploaded whole")
    return Answer({})


def _commit(hub: LoopbackHub, request: Request, repo_id: str, revision: str) -> Answer:
    repo = hub.writable(request, repo_id)
    header: dict = {}
    changes: dict[str, Blob | None] = {}
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                header = value
            case "file":
                changes[value["path"]] = Blob(base64.b64decode(value["content"], validate=True))
            case "lfsFile":
                if value["oid"] not in repo.large:
                    raise Refused(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                changes[value["path"]] = Blob(repo.large[value["oid"]], lfs=True)
            case "deletedFile":
                changes[value["path"]] = None
            case "deletedFolder":
                changes[value["path"].rstrip("/") + "/"] = None
    user = hub.user(request)
    oid = repo.commit(revision, header["summary"], changes, user.name if user else "", header.get("parentCommit"))
    return Answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo_id}/commit/{oid}"})


def _resolve(hub: LoopbackHub, request: Request, repo_id: str, revision: str, path: str) -> Answer:
    commit, blob = hub.readable(request, repo_id).file(revision, path)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.git_oid}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked is None or request.method == "HEAD":
        return Answer(blob.data, 200, headers)
    start, size = int(asked[1]), len(blob.data)
    end = int(asked[2]) + 1 if asked[2] else size
    if start >= size:
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{min(end, size) - 1}/{size}"
    return Answer(blob.data[start:end], 206, headers)


def _create_collection(hub: LoopbackHub, request: Request) -> Answer:
    asked = request.json()
    hub.may_write(request, asked["namespace"])
    words = re.sub(r"\W+", "-", asked["title"].lower()).strip("-")
    slug = f"{asked['namespace']}/{words}-{hashlib.sha1(words.encode()).hexdigest()[:24]}"
    if slug in hub.collections:
        return Answer({"error": "Collection already exists", "slug": slug}, 409)
    hub.collections[slug] = Collection(
        slug, asked["title"], asked["namespace"], asked.get("private", False), asked.get("description")
    )
    return Answer(hub.collections[slug].described())


def _collection(hub: LoopbackHub, request: Request, slug: str) -> Answer:
    if slug not in hub.collections:
        raise Refused(404, "Collection not found")
    return Answer(hub.collections[slug].described())


def _collections(hub: LoopbackHub, request: Request) -> Answer:
    owner = request.query.get("owner", [None])[0]
    found = [entry.described() for entry in hub.collections.values() if owner in (None, entry.owner)]
    for entry in found:
        del entry["position"]  # the client counts them itself
    return Answer(found)


def _add_to_collection(hub: LoopbackHub, request: Request, slug: str) -> Answer:
    collection = hub.collections.get(slug)
    if collection is None:
        raise Refused(404, "Collection not found")
    hub.may_write(request, collection.owner)
    asked = request.json()
    item = asked["item"]["id"]
    hub.readable(request, item)
    if item in collection.items:
        return Answer({"error": "Item already in collection"}, 409)
    collection.items.append(item)
    if asked.get("note"):
        collection.notes[item] = asked["note"]
    return Answer(collection.described())


_ID = r"([\w.-]+(?:(?:/|%2F)[\w.-]+)?)"
_REV = r"([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/validate-yaml", _validate_yaml),
    ("POST", "/api/repos/create", _create_repo),
    ("GET", "/api/collections", _collections),
    ("POST", "/api/collections", _create_collection),
    ("GET", rf"/api/collections/{_ID}", _collection),
    ("POST", rf"/api/collections/{_ID}/items?", _add_to_collection),
    ("GET", rf"/api/models/{_ID}/refs", _refs),
    ("GET", rf"/api/models/{_ID}/commits/{_REV}", _commits),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}", _tree),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}/(.+)", _tree),
    ("GET", rf"/api/models/{_ID}/revision/{_REV}", _model_info),
    ("GET", rf"/api/models/{_ID}", _model_info),
    ("POST", rf"/api/models/{_ID}/paths-info/{_REV}", _paths_info),
    ("POST", rf"/api/models/{_ID}/branch/{_REV}", _create_branch),
    ("POST", rf"/api/models/{_ID}/tag/{_REV}", _create_tag),
    ("DELETE", rf"/api/models/{_ID}/tag/{_REV}", _delete_tag),
    ("POST", rf"/api/models/{_ID}/preupload/{_REV}", _preupload),
    ("POST", rf"/api/models/{_ID}/commit/{_REV}", _commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _lfs_batch),
    ("PUT", rf"/lfs/{_ID}/(\w+)", _lfs_upload),
    ("POST", rf"/lfs/{_ID}/(\w+)/verify", _lfs_verify),
    ("HEAD|GET", rf"/{_ID}/resolve/{_REV}/(.+)", _resolve),
]
