"""What a hub lists, and its files byte by byte, through huggingface_hub."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from lockstep.errors import EnvironmentLacks, InputError, LockstepError
from lockstep.formats.hub_name import Declared, HubName, Listing

_TIMEOUT_S = 20.0


def list_files(name: HubName) -> Listing:
    """The files of a revision and what the hub declares of each.

    Raises: EnvironmentLacks if the hub cannot be reached or refuses. InputError if it has no such
    repository or revision, or declares no hashes.
    """
    with _explained(name):
        found = HfApi(endpoint=_endpoint()).model_info(
            name.repo, revision=name.revision, files_metadata=True, timeout=_TIMEOUT_S
        )
    files = {}
    for file in found.siblings or []:
        sha256 = file.lfs.sha256 if file.lfs else ""
        if file.size is None or not (sha256 or file.blob_id):
            raise InputError(
                f"{name.text} ({file.rfilename:.120}): expected a size and a hash, got none",
                hint="check HF_ENDPOINT: not every mirror of the hub declares hashes",
            )
        files[file.rfilename] = Declared(file.size, sha256, "" if sha256 else file.blob_id or "")
    return Listing(str(found.sha), files)


def download(name: HubName, commit: str, file: str, declared: Declared, part: Path) -> None:
    """Downloads a file, or the rest of it where a part is there already.

    Raises: EnvironmentLacks if the hub cannot be reached or refuses, or the disk has no room.
    """
    n_held = part.stat().st_size if part.exists() else 0
    if n_held > declared.n_bytes:
        part.unlink()
        n_held = 0
    room = shutil.disk_usage(part.parent).free
    if room < declared.n_bytes - n_held:
        raise EnvironmentLacks(
            f"{part.parent}: expected room for {declared.n_bytes - n_held} bytes, got {room}",
            hint="free some space, or point LOCKSTEP_HOME to another disk",
        )
    url = hf_hub_url(name.repo, file, revision=commit, endpoint=_endpoint())
    with _explained(name), _Whole(part, "ab") as out:
        http_get(
            url,
            out,
            resume_size=n_held,
            headers=build_hf_headers(),
            expected_size=declared.n_bytes,
            displayed_filename=file,
        )


class _Whole(io.FileIO):
    """A file without a buffer, of which a kill loses nothing, and whose writes are never parts.

    On a disk that fills up a write is shortened first; only the next one fails.
    """

    def write(self, data: Any, /) -> int:
        """Writes all of it.

        Raises: OSError if the disk refuses.
        """
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Errors of the library as ours."""
    try:
        yield
    except (HTTPError, OSError) as error:
        raise _translated(name, error) from error


def _translated(name: HubName, error: Exception) -> LockstepError:
    page = f"{_endpoint() or 'https://huggingface.co'}/{name.repo}"
    if isinstance(error, GatedRepoError):
        return EnvironmentLacks(
            f"{name.text}: expected access, got a repository that is gated",
            hint=f"accept its terms at {page}, then set HF_TOKEN to a token of your account",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"{name.text}: expected the revision {name.revision}, the repository has none",
            hint=f"see its branches and tags at {page}",
        )
    if isinstance(error, EntryNotFoundError):
        return InputError(
            f"{name.text}: expected the file at the hub, got none (404)",
            hint=f"see its files at {page}/tree/{name.revision}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{name.text}: expected the repository {name.repo}, the hub has none (404),"
            " or it is private",
            hint="check the spelling; for a private one set HF_TOKEN",
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        refused = status in (401, 403)
        return EnvironmentLacks(
            f"{name.text}: expected an answer of the hub, got HTTP status {status}",
            hint="set HF_TOKEN to a token that may read it" if refused else "try again later",
        )
    if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the network
        return EnvironmentLacks(
            f"{name.text}: cannot be written: {error}", hint="check free space and permissions"
        )
    return EnvironmentLacks(
        f"{name.text}: expected a hub at {_endpoint() or 'https://huggingface.co'}, it cannot be"
        f" reached: {error}",
        hint="check the network and HF_ENDPOINT; run it again to resume",
    )
