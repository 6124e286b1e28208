"""Logits of transformers in float32 with the weights of a GGUF file, dequantised by `gguf`.

python bench/reference.py FILE.gguf HF_DIRECTORY POSITIONS OUT.npy

The class and its settings come from the Hugging Face directory. So the error of an engine against
these logits is that of the engine alone, not that of the file's quantisation.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timing import drawn_tokens

BEHIND_WINDOW = 188  # positions that no longer see the first ones


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far logits are from the reference's.

    `relative` is the norm of the difference over the norm of the reference, over all positions.
    `flips` counts positions whose likeliest token differs; `margin` is the largest gap between the
    two in the reference's logits, over the root mean square of all of them.
    """

    relative: float
    least_cosine: float
    positions: int
    flips: int
    margin: float


def distance(logits_TV: np.ndarray, reference_TV: np.ndarray) -> Distance:
    """Compares row by row in float64.

    Raises: ValueError if shapes differ or something is not finite.
    """
    if logits_TV.shape != reference_TV.shape:
        raise ValueError(f"logits: expected {reference_TV.shape}, got {logits_TV.shape}")
    differences = norms = 0.0
    cosines, margins = [], []
    for row, wanted in zip(logits_TV, reference_TV, strict=True):
        a, b = row.astype(np.float64), wanted.astype(np.float64)
        if not np.isfinite(a @ b):
            raise ValueError("logits: expected finite ones")
        differences += float((a - b) @ (a - b))
        norms += float(b @ b)
        cosines.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
        if a.argmax() != b.argmax():
            margins.append(float(b.max() - b[a.argmax()]))
    return Distance(
        relative=float(np.sqrt(differences / norms)),
        least_cosine=min(cosines),
        positions=len(cosines),
        flips=len(margins),
        margin=max(margins, default=0.0) / float(np.sqrt(norms / reference_TV.size)),
    )


def folder_of(file: Path) -> Path:
    """NAME-hf beside NAME-TYPE.gguf."""
    return file.with_name(f"{file.stem.rpartition('-')[0]}-hf")


def reference_logits(file: Path, folder: Path, positions: int, directory: Path) -> np.ndarray:
    """The same in a process of its own, whose memory goes with it.

    Raises: SystemExit if transformers fails.
    """
    target = directory / f"{file.stem}.npy"
    command = [sys.executable, __file__, str(file), str(folder), str(positions), str(target)]
    if subprocess.run(command).returncode:
        raise SystemExit(f"{file}: expected logits of transformers, see above")
    found: np.ndarray = np.load(target)
    target.unlink()
    return found


def main() -> None:
    """Writes the logits; more positions than asked for where a window would hide them."""
    import torch
    import transformers
    from gguf_tensors import dequantised, stored

    file, folder, positions, target = sys.argv[1:]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    values = dequantised(file)
    values.pop("rope_freqs.weight", None)  # of llama3 scaling, which transformers has in its config
    n = int(positions)
    if config.model_type == "gemma3_text":
        n = max(n, config.sliding_window + BEHIND_WINDOW)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            how = stored(name, config)
            parameter.copy_(torch.from_numpy(np.array(how.from_gguf(values.pop(how.name)))))
        if values:
            raise SystemExit(f"{file}: {folder} has no place for {sorted(values)}")
        ids = torch.from_numpy(drawn_tokens(n, config.vocab_size).astype(np.int64))[None]
        np.save(target, model(input_ids=ids, use_cache=False).logits[0].numpy())


if __name__ == "__main__":
    main()
