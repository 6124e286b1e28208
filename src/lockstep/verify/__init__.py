"""Checkpoint conversions proved value-exact: claims, plan, engine, judge, report.

from lockstep.verify import prove
report = prove("old.safetensors", "new.safetensors", "claims.toml")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lockstep.verify.api import ClaimsDoNotAddUp as ClaimsDoNotAddUp
    from lockstep.verify.api import NotProved as NotProved
    from lockstep.verify.api import ValuesDiffer as ValuesDiffer
    from lockstep.verify.api import check as check
    from lockstep.verify.api import digest_checkpoint as digest_checkpoint
    from lockstep.verify.api import exit_code as exit_code
    from lockstep.verify.api import prove as prove
    from lockstep.verify.claims.claim_file import load_claims as load_claims
    from lockstep.verify.claims.rules import ClaimFile as ClaimFile
    from lockstep.verify.engine.examine import Options as Options

# Name -> the module that has it, imported when the name is asked for: parts of this package are
# used alone, and the whole of it takes memory that a small budget would rather spend on reading.
_EXPORTS = {
    "ClaimFile": "claims.rules",
    "ClaimsDoNotAddUp": "api",
    "NotProved": "api",
    "Options": "engine.examine",
    "ValuesDiffer": "api",
    "check": "api",
    "digest_checkpoint": "api",
    "exit_code": "api",
    "load_claims": "claims.claim_file",
    "prove": "api",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """What the package exports."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"lockstep.verify.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    """The exports, beside what is there."""
    return sorted({*globals(), *_EXPORTS})
