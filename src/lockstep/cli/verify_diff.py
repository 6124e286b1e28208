"""`lockstep verify diff`: two checkpoints with the same names, without claims."""

from __future__ import annotations

from pathlib import Path

import click

from lockstep.cli.verb import Outcome, Verb
from lockstep.cli.verify_options import FILE, JOBS, MAX_MEMORY, format_option
from lockstep.cli.verify_outputs import Outputs, claim_outputs, output_options
from lockstep.cli.verify_progress import Progress
from lockstep.verify.api import Pair, check_pair, exit_code
from lockstep.verify.engine.examine import Options


@click.command("diff", cls=Verb)
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@MAX_MEMORY
@JOBS
@click.option("--digest", type=click.Choice(("sha256", "none")), default="none",
              show_default=True, help="Digests of all leaves and their root.")  # fmt: skip
@output_options
@format_option("--source-format", "A")
@format_option("--target-format", "B")
@click.option("--allow-same", is_flag=True, help="Let both checkpoints be the same files.")
def command(
    a: Path, b: Path, max_memory_bytes: int, jobs: int, digest: str, outputs: Outputs,
    source_format: str | None, target_format: str | None, allow_same: bool,
) -> Outcome:  # fmt: skip
    """Compare leaves of the same name, bit by bit.

    Exit code 1 if a leaf differs in bits, type or shape, or is in one of the two only.
    """
    claim_outputs(outputs.paths, [a, b], force=outputs.force)
    pair = Pair(source=a, target=b, source_format=source_format, target_format=target_format,
                allow_same=allow_same)  # fmt: skip
    with Progress() as progress:
        options = Options(max_memory_bytes=max_memory_bytes, jobs=jobs, digest=digest,
                          progress=progress)  # fmt: skip
        record = check_pair(pair, None, options)
    code = exit_code(record)
    return outputs.write(record, 1 if code == 2 else code)  # there are no claims to be wrong
