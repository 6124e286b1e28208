"""The ids of texts, by the tokenizer of a model and by those that read its export."""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.artifacts import Check, RunDir
from lockstep.data.rows import read_rows
from lockstep.engine.source import Source
from lockstep.engine.text import open_tokenizer
from lockstep.proof.export_texts import texts_for
from lockstep.tokenizers import ModelTokenizer, Part, Tokenizer
from lockstep.training.prepare import DATASET, TRAIN_FILE

_ROWS = 40  # of a run's own data


def corpus_of(source: Source, tokenizer: ModelTokenizer) -> list[str]:
    """Texts that the tokenizer can encode, with some rows of the data of a run."""
    rows: list[str] = []
    if source.run is not None:
        file = RunDir(source.path).path / DATASET / TRAIN_FILE
        rows = read_rows(file)[:_ROWS] if file.exists() else []
    names = list(tokenizer.control_names)
    if isinstance(tokenizer, Tokenizer):
        names += tokenizer.tags
    return texts_for(tokenizer.encode, names, rows)


def ids_of(tokenizer: ModelTokenizer, texts: Sequence[str], *, markup: bool) -> list[list[int]]:
    """The ids of each text; in markup the names of control tokens count."""
    return [tokenizer.encode_parts([Part(text, markup=markup)]) for text in texts]


def reader_check(source: Source, exported: Source, texts: Sequence[str]) -> Check:
    """The tokenizer that we read out of the export, as text and as markup."""
    ours, theirs = open_tokenizer(source), open_tokenizer(exported)
    expected = [i for m in (False, True) for i in ids_of(ours, texts, markup=m)]
    found = [i for m in (False, True) for i in ids_of(theirs, texts, markup=m)]
    return ids_check("tokenizer", "lockstep", texts + texts, expected, found)  # type: ignore[operator]


def ids_check(
    id: str, who: str, texts: Sequence[str], expected: Sequence[list[int]],
    found: Sequence[list[int] | None],
) -> Check:  # fmt: skip
    """How many texts have other ids; those of which the reader gave none are not compared."""
    triples = zip(texts, expected, found, strict=True)
    pairs = [(text, ours, theirs) for text, ours, theirs in triples if theirs is not None]
    bad = [text for text, ours, theirs in pairs if list(ours) != list(theirs)]
    return Check.measured(
        id=id, name=f"ids that {who} reads: texts that differ", against="the model's tokenizer",
        compared=len(pairs), unit="texts", figure=len(bad), relation="==", bound=0,
        reason=f"first {bad[0]!r:.60}" if bad else "",
    )  # fmt: skip
