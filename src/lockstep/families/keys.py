"""Strict reading of a foreign config: a key is read, ignored for a stated reason, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from lockstep.errors import InputError, UsageError

T = TypeVar("T", int, float, bool, str)
WISH = "choose a model without this setting, or report it with its config as a wish"
AGAIN = "download the model again, or convert it again from the original"


class Keys:
    """The keys of one config, each of which must be taken or ignored."""

    def __init__(self, where: str, given: Mapping[str, object]) -> None:
        self.where = where
        self._given = given
        self._left = set(given)

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key; without a default the key is required, null counts as absent.

        Raises: InputError if it is missing or of another type.
        """
        self._left.discard(key)
        value = self._given.get(key)
        if value is None:
            if default is None:
                raise InputError(f"{self.where}: expected a key {key}, got none", hint=AGAIN)
            return default
        if kind is float and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if type(value) is not kind:
            raise self._of_another_type(key, kind.__name__)
        return value

    def take_f32(self, key: str, default: float | None = None) -> float:
        """A number that was stored as float32: the shortest decimal that rounds to it.

        Raises: InputError if it is missing or of another type.
        """
        value = self.take(key, float, default)
        return float(str(np.float32(value))) if key in self else value

    def take_mapping(self, key: str) -> Mapping[str, object] | None:
        """The mapping under a key, None where it is absent or null.

        Raises: InputError if it is something else.
        """
        self._left.discard(key)
        value = self._given.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self._of_another_type(key, "a mapping")
        return value

    def take_list(self, key: str) -> list[object] | None:
        """The list under a key, None where it is absent or null.

        Raises: InputError if it is something else.
        """
        self._left.discard(key)
        value = self._given.get(key)
        if value is not None and not isinstance(value, list):
            raise self._of_another_type(key, "a list")
        return value

    def _of_another_type(self, key: str, wanted: str) -> InputError:
        got = f"{self._given.get(key)!r:.60}"
        return InputError(f"{self.where} {key}: expected {wanted}, got {got}", hint=AGAIN)

    def only(self, key: str, *allowed: object) -> None:
        """Takes a key that may be absent, null or one of the values that we can carry out.

        Raises: InputError naming the key and its value.
        """
        self._left.discard(key)
        value = self._given.get(key)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(repr(a) for a in allowed) or "null"
            raise InputError(
                f"{self.where} {key}: expected {wanted}, got {value!r:.60}, which is not supported",
                hint=WISH,
            )

    def finish(self, ignored: Mapping[str, str]) -> None:
        """Ends the reading; `ignored` holds, for each key that needs no reading, the reason.

        Raises: InputError naming every key that was neither read nor ignored.
        """
        unknown = sorted(self._left - set(ignored))
        if unknown:
            listed = f"{', '.join(unknown):.400}"
            raise InputError(
                f"{self.where}: expected only keys that are understood, got {listed}",
                hint=WISH,
            )


def made_from_file(Config: Any, where: str, settings: Mapping[str, Any]) -> Any:
    """A config from settings that were read from a file.

    Raises: InputError if they contradict each other.
    """
    try:
        return Config(**settings)
    except UsageError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint or AGAIN) from error
