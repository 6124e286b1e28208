"""samples.json: what the promoted model drew for held-out prompts, unmasked."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts.codec import Scalar
from lockstep.artifacts.record import Artifact
from lockstep.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SampleToken:
    """One token: its id and the text that it stands for."""

    id: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion; `svg` is there only if the safe parser accepted it.

    `tokens` are those of prompt and completion, `prompt_tokens` says how many belong to the prompt.
    """

    prompt: str
    prompt_tokens: int
    tokens: tuple[SampleToken, ...]
    text: str
    svg_valid: bool
    svg: str | None
    error: str
    predicates: dict[str, bool]
    exact_copy: bool
    stopped: bool

    def __post_init__(self) -> None:
        if self.svg_valid != (self.svg is not None):
            raise InputError(
                f"sample {self.prompt!r:.60}: expected an SVG exactly if it is valid",
                hint="sample again",
            )


@dataclass(frozen=True, kw_only=True)
class Samples(Artifact, file="samples.json", schema="lockstep.samples/1"):
    """All samples of one evaluation, none left out.  History: 1 the first."""

    generated_at: str
    prompt_source: str
    sampling: dict[str, Scalar]
    weights_sha256: str
    tokenizer_sha256: str
    rows: tuple[Sample, ...]

    @property
    def n_valid(self) -> int:
        """How many of the samples are valid SVG."""
        return sum(row.svg_valid for row in self.rows)

    @property
    def n_predicates(self) -> int:
        """How many predicates the prompts ask for; those of an invalid drawing count as false."""
        return sum(len(row.predicates) for row in self.rows)

    @property
    def n_predicates_true(self) -> int:
        """How many of them hold."""
        return sum(sum(row.predicates.values()) for row in self.rows)

    @property
    def n_exact_copies(self) -> int:
        """How many samples are rows of the training data, to the byte."""
        return sum(row.exact_copy for row in self.rows)
