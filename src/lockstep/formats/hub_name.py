"""Names of models of the Hugging Face Hub, and what the hub declares of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from lockstep.errors import UsageError
from lockstep.formats.locate.bounded import shown

SCHEME = "hf://"
DEFAULT_REVISION = "main"
_ID = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
# Source: the grammar of huggingface_hub, docs/source/en/package_reference/hf_uris.md
_NAME = re.compile(
    rf"hf://(?:models/)?(?P<repo>{_ID}/{_ID})"
    r"(?:@(?P<revision>refs/pr/\d+|[A-Za-z0-9._%-]+))?(?:/(?P<file>.+))?"
)
_OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, a revision of it, and a file; "" is the directory of the model."""

    repo: str
    revision: str
    file: str

    @property
    def text(self) -> str:
        """The name as a person writes it."""
        revision = "" if self.revision == DEFAULT_REVISION else f"@{quote(self.revision, safe='')}"
        return f"{SCHEME}{self.repo}{revision}{'/' if self.file else ''}{self.file}"


@dataclass(frozen=True, slots=True)
class Declared:
    """What the hub says that a file holds: its bytes, and their SHA-256, or Git's SHA-1 of them."""

    n_bytes: int
    sha256: str
    git_sha1: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit."""

    commit: str
    files: Mapping[str, Declared]


def is_hub_name(text: str) -> bool:
    """Whether this names a model of the hub, well or badly."""
    return text.startswith(SCHEME)


def parse_hub_name(text: str) -> HubName:
    """What a name says.

    Raises: UsageError if it is malformed, or leads out of the repository.
    """
    found = _NAME.fullmatch(text)
    if found is None or found["repo"].split("/")[0] in _OTHER_KINDS:
        raise UsageError(
            f"{shown(text)}: expected hf://org/repo, hf://org/repo/file.gguf or"
            " hf://org/repo@revision/file.gguf, got another form",
            hint="copy the name of the model from its page on the hub",
        )
    revision, file = unquote(found["revision"] or DEFAULT_REVISION), found["file"] or ""
    for part in (revision, *([file] if file else []), *found["repo"].split("/")):
        if not is_inside(part):
            raise UsageError(
                f"{shown(text)}: expected a path inside of the repository, got {part!r:.120}",
                hint="write it without .., without a / at either end, and without \\",
            )
    return HubName(found["repo"], revision, file)


def is_inside(path: str) -> bool:
    """Whether a path stays where it begins, on every system."""
    steps = path.split("/")
    return (
        path.isprintable()
        and not any(sign in path for sign in "\\:")
        and all(step and not step.startswith(".") for step in steps)  # .x is of the cache
    )
