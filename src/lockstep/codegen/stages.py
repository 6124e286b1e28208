"""Stages and entry points as C text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockstep.codegen.kernels import Instance, count_of
from lockstep.ir import Chain, ParallelStage

_OUTSIDE = """
/* Runs an entry point; returns 1 if there is none with this number. */
int32_t lockstep_call(int32_t entry, void *const *arenas, const int64_t *counts) {
  if (entry < 0 || entry >= N_ENTRIES) return 1;
  const Call call = {(char *const *)arenas, counts};
  const int is_one_tile = N_COUNTS > 0 && counts[0] <= ROWS_ALONE; /* others would only wait */
  if (pool.n_wanted == 1 || is_one_tile)
    run_alone(&call, entries[entry].stages, entries[entry].n_stages);
  else
    run_shared(&call, entries[entry].stages, entries[entry].n_stages);
  return 0;
}

/* Runs one node alone, on the thread of the caller. */
int32_t lockstep_run_node(int32_t node, void *const *arenas, const int64_t *counts) {
  if (node < 0 || node >= N_NODES) return 1;
  const Call call = {(char *const *)arenas, counts};
  nodes[node].run(&call, 0, nodes[node].count(&call));
  return 0;
}

/* Says how many threads the calls that follow use. */
void lockstep_set_threads(int32_t n_threads) {
  if (n_threads < 1 || n_threads > MAX_THREADS || n_threads == pool.n_wanted) return;
  if (pool.n_running > 1) stop_threads();
  pool.n_wanted = n_threads;
}
"""


class StageWriter:
    """Collects the stages of all entry points; those that entries share are written once."""

    def __init__(
        self, names: Mapping[str, str], instances: Mapping[str, Instance], *, is_small: bool
    ) -> None:
        self._names, self._instances, self._is_small = names, instances, is_small
        self._numbers: dict[tuple[str, ...], int] = {}
        self._counts: dict[str, str] = {}  # expression -> the function that gives it
        self._parts = ["\n/* Stages: everything between two barriers. */\n"]
        self._entries: dict[str, list[int]] = {}
        self._records: list[str] = []  # of each stage, what tables hold
        self._rows_alone = 0  # a small program runs that many rows on one thread

    def add_entry(self, entry: str, stages: Sequence[ParallelStage]) -> None:
        """Adds an entry point that runs these stages one after another."""
        numbers = []
        for stage in stages:
            key = tuple(node.id for node in stage.nodes)
            if key not in self._numbers:
                self._numbers[key] = len(self._numbers)
                self._parts.append(self._stage_text(self._numbers[key], stage))
            numbers.append(self._numbers[key])
        self._entries[entry] = numbers

    def text(self) -> str:
        """All stages, the entry points, and the functions that are called from outside."""
        return "".join([*self._parts, self._tables(), _OUTSIDE])

    def _stage_text(self, number: int, stage: ParallelStage) -> str:
        parts = [self._chain(chain) for chain in stage.chains]
        for node in stage.tiles:
            count = f"{self._instances[node.id].name}_count(c)"
            parts.append((count, [f"{self._names[node.id]}(c, task, task + 1);"]))
        counts = [count for count, _ in parts]
        body = [line for count, lines in parts[:-1] for line in _guarded(count, lines)]
        lines = "\n".join(f"  {line}" for line in [*body, *parts[-1][1]])
        chain = self._count(" + ".join(counts[: len(stage.chains)]) or "0")
        tasks = self._count(" + ".join(counts))
        self._records.append(f"{{stage_{number}, {chain}, {tasks}}}")
        return f"static void stage_{number}(const Call *c, int64_t task) {{\n{lines}\n}}\n"

    def _count(self, expression: str) -> str:
        """The function that gives a number of tasks; layers share theirs."""
        if expression not in self._counts:
            name = self._counts[expression] = f"tasks_{len(self._counts) + 1}"
            self._parts.append(
                f"static int64_t {name}(const Call *c) {{\n  (void)c;\n  return {expression};\n}}\n"
            )
        return self._counts[expression]

    def _chain(self, chain: Chain) -> tuple[str, list[str]]:
        rows = count_of(chain.rows) if isinstance(chain.rows, str) else str(chain.rows)
        tile = chain.tile_rows
        if isinstance(chain.rows, str) and self._is_small:
            self._rows_alone = max(self._rows_alone, tile)
        count = f"({rows} + {tile - 1}) / {tile}"
        lines = [
            f"const int64_t begin = task * {tile}, stop = begin + {tile};",
            f"const int64_t end = stop < {rows} ? stop : {rows};",
            *(f"{self._names[node.id]}(c, begin, end);" for node in chain.nodes),
        ]
        return count, lines

    def _tables(self) -> str:
        lines = ["\n/* Entry points. */"]
        for entry, numbers in self._entries.items():
            stages = ", ".join(self._records[n] for n in numbers)
            rows = stages or "{NULL, NULL, NULL}"
            lines.append(f"static const Stage {entry}_stages[] = {{{rows}}};")
        counts = f"N_ENTRIES = {len(self._entries)}, N_NODES = {len(self._names)}"
        lines.append(f"enum {{ {counts}, ROWS_ALONE = {self._rows_alone} }};")
        lines.append("static const struct {\n  const Stage *stages;\n  int n_stages;")
        lines.append("} entries[] = {")
        lines += [f"  {{{e}_stages, {len(n)}}}," for e, n in self._entries.items()]
        lines += ["};", "static const struct {", "  void (*run)(const Call *, int64_t, int64_t);"]
        lines += ["  int64_t (*count)(const Call *);", "} nodes[] = {"]
        for id, name in self._names.items():
            lines.append(f"  {{{name}, {self._instances[id].name}_count}},")
        return "\n".join([*lines, "};\n"])


def _guarded(count: str, lines: list[str]) -> list[str]:
    """The lines for the first `count` tasks; the tasks behind them are numbered from 0 again."""
    return [
        f"if (task < {count}) {{",
        *(f"  {line}" for line in lines),
        "  return;",
        "}",
        f"task -= {count};",
    ]
