"""A model as a folder of C: it builds with make and runs where there is no Python."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from lockstep.engine.model import Capacity, OpenModel, load
from lockstep.engine.packed import SUM_BYTES, word_sums
from lockstep.engine.source import Source
from lockstep.engine.text import open_tokenizer
from lockstep.errors import EnvironmentLacks
from lockstep.formats.atomic import sync
from lockstep.tokenizers import Tokenizer, c_unicode, c_vocabulary, padded, vocabulary_of

ROWS = 64  # tokens that a pass reads at most
PLAIN_FILES = ("main.c", "tokenizer.c", "tokenizer.h", "words.c", "words.h", "Makefile")
WEIGHTS = "weights.bin"
_FOLDER = files("lockstep.engine").joinpath("take_away")
_CHUNK_BYTES = 64 << 20
_README = """\
{name}, a {family} model of {n_parameters:,} parameters, as a C program.

    make
    ./lm -p "{prompt}" -n 96

needs a C compiler, make, libm and pthreads; `./lm --help` lists the options. The tokens are those
that `lockstep run` gives. The context is {context} tokens.

  model.c       the program, generated from the graph of the model: kernels, threads, entry points
  model.h       its sizes, and where its inputs and its logits lie
  weights.bin   the weights as the kernels read them
  tokenizer.*   text to ids and back; tokenizer.bin is the vocabulary
  words.*       into which words a text falls; unicode.h has what a letter is
  main.c        the command line, and how a token is chosen
"""


def export_c(source: Source, path: Path, *, context: int | None = None) -> OpenModel:
    """Writes the folder and returns the model that is in it, open.

    Raises: UsageError if there is no C for its tokenizer; EnvironmentLacks if the disk refuses.
    """
    tokenizer = open_tokenizer(source)
    vocabulary = padded(vocabulary_of(tokenizer), source.model.config.vocab)
    table = c_vocabulary(vocabulary, tokenizer)
    opened = load(source, Capacity(context=context, rows=ROWS))
    tags = tokenizer.tags if isinstance(tokenizer, Tokenizer) else ()
    about = _README.format(
        name=source.path.name, family=source.model.family.name,
        n_parameters=source.model.n_parameters, context=opened.session.context,
        prompt=tags[0] if tags else "Once upon a time",
    )  # fmt: skip
    texts = {
        **{name: _FOLDER.joinpath(name).read_bytes() for name in PLAIN_FILES},
        "model.c": opened.built.emitted.source.encode(),
        "model.h": _header(opened).encode(),
        "unicode.h": c_unicode().encode(),
        "tokenizer.bin": table,
        "README.txt": about.encode(),
    }
    try:
        path.mkdir()
        for name, content in texts.items():
            (path / name).write_bytes(content)
        _write_weights(opened, path / WEIGHTS)
        for file in path.iterdir():
            sync(file)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error
    return opened


def _write_weights(opened: OpenModel, path: Path) -> None:
    arena = opened.built.program.arena("params")
    with path.open("wb") as file:
        for begin in range(0, arena.nbytes, _CHUNK_BYTES):
            file.write(arena[begin : begin + _CHUNK_BYTES].data)


def _header(opened: OpenModel) -> str:
    """The text of model.h: what main.c must know of the program, from its manifest."""
    manifest = opened.built.program.manifest
    places = {id: id for id in ("tokens", "positions", "slots", "wanted")}
    places["logits"] = manifest.outputs["logits"]
    names = ", ".join(arena.name for arena in manifest.arenas)
    sizes = ", ".join(str(arena.n_bytes) for arena in manifest.arenas)
    most = ", ".join(map(str, manifest.symbols.values()))
    sums = ", ".join(f"{n:#x}" for n in word_sums(opened.built.program.arena("params")))
    return "\n".join(
        [
            f"/* {manifest.name}: sizes and places, from the plan of the program in model.c. */",
            "#ifndef MODEL_H",
            "#define MODEL_H",
            "#include <stddef.h>",
            "#include <stdint.h>",
            "",
            f"/* The memories: {names}. Values lie at byte offsets of one of them. */",
            "enum {",
            *(f"  {name} = {value}," for name, value in _numbers(opened, places).items()),
            "};",
            *(
                f"#define MODEL_{name.upper()}_OFFSET {manifest.values[id].offset}"
                for name, id in places.items()
            ),
            f"static const size_t MODEL_BYTES[] = {{{sizes}}};",
            f"static const int64_t MODEL_MOST[] = {{{most}}}; /* rows and logits of a call */",
            "/* Of the 64-bit words of each MODEL_SUM_BYTES of the weights. */",
            f"static const uint64_t MODEL_SUMS[] = {{{sums}}};",
            "",
            "int32_t lockstep_call(int32_t entry, void *const *arenas, const int64_t *counts);",
            "void lockstep_set_threads(int32_t n_threads);",
            "#endif",
            "",
        ]
    )


def _numbers(opened: OpenModel, places: Mapping[str, str]) -> dict[str, int]:
    """The numbers by the names that main.c has for them; `places` are values by such a name."""
    manifest, session = opened.built.program.manifest, opened.session
    arenas, counts = [arena.name for arena in manifest.arenas], list(manifest.symbols)
    return {
        "MODEL_CONTEXT": session.context,
        "MODEL_ROWS": session.shape.rows,
        "MODEL_VOCAB": session.n_vocab,
        "MODEL_INIT": manifest.entries["init"],
        "MODEL_FORWARD": manifest.entries["forward"],
        "MODEL_PARAMS": arenas.index("params"),
        "MODEL_N_ARENAS": len(arenas),
        "MODEL_SUM_BYTES": SUM_BYTES,
        "MODEL_COUNT_ROWS": counts.index("rows"),
        "MODEL_COUNT_OUTS": counts.index("outs"),
        "MODEL_N_COUNTS": len(counts),
        **{
            f"MODEL_{name.upper()}_ARENA": arenas.index(manifest.values[id].arena)
            for name, id in places.items()
        },
    }
