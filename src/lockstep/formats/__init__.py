"""Files of weights: list their leaves, read one, write; knows no model."""

from lockstep.formats.gguf import GGUFFile
from lockstep.formats.gguf_write import write_gguf
from lockstep.formats.hf_directory import HFDirectory, write_hf_directory
from lockstep.formats.safetensors import SafetensorsFile, write_safetensors
from lockstep.formats.to_write import TensorToWrite

__all__ = [
    "GGUFFile",
    "HFDirectory",
    "SafetensorsFile",
    "TensorToWrite",
    "write_gguf",
    "write_hf_directory",
    "write_safetensors",
]
