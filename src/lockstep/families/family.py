"""What a family is: one record for each architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic

from lockstep.families.decoder import Block, C, inference_graph, training_graph
from lockstep.families.source import TensorSource
from lockstep.families.weight import Parameters, Scheme, Weight
from lockstep.ir import Array, Graph, InferenceShape


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C]):
    """One architecture.

    `block` is one layer of its graph. `TINY` and `variants` together switch every feature on and
    off.
    """

    name: str  # = GGUF general.architecture = the name of its file
    Config: type[C]
    weights: Callable[[C], tuple[Weight, ...]]
    block: Block[C]
    TINY: C
    variants: Mapping[str, C]
    hf_class: str  # the class of transformers that is the oracle
    from_hf: Callable[[Mapping[str, object]], C]
    to_hf: Callable[[C], dict[str, object]]
    from_gguf: Callable[[Mapping[str, object], TensorSource], C]
    # GGUF metadata, and tensors that are no parameters; not every family is written.
    to_gguf: Callable[[C], dict[str, object]] | None = None
    gguf_tensors: Callable[[C], dict[str, Array]] = lambda config: {}
    # What of a file is parameters, under the names of the weight table.
    own_tensors: Callable[[TensorSource, Scheme], TensorSource] = lambda source, scheme: source
    # The same model where its parameters are in the order that Hugging Face has.
    in_hf_order: Callable[[C], C] = lambda config: config

    hf_types: tuple[str, ...] = ()  # HF model_type, where it is not the name

    @property
    def small_configs(self) -> dict[str, C]:
        """The small configs that the laws of all families are held to."""
        return {"tiny": self.TINY, **self.variants}

    def training_graph(self, config: C, batch: int, tokens: int) -> Graph:
        """The forward graph of a batch and its summed loss.

        Raises: UsageError if the sequences are longer than the context.
        """
        weights = self.weights(config)
        return training_graph(self.name, config, weights, self.block, batch, tokens)

    def inference_graph(self, config: C, shape: InferenceShape) -> Graph:
        """The graph of growing sequences with their caches and states.

        Raises: UsageError if the context is too long.
        """
        return inference_graph(self.name, config, self.weights(config), self.block, shape)

    def parameters(self, config: C, source: TensorSource, scheme: Scheme) -> Parameters:
        """The parameters in a checkpoint, to be read one by one.

        Raises: InputError naming every tensor that is missing, extra or of another shape.
        """
        # Some checkpoints with tied embeddings store the head as well.
        copied = config.tied and scheme == "hf"
        copies = {"lm_head.weight": "model.embed_tokens.weight"} if copied else {}
        return Parameters(self.weights(config), self.own_tensors(source, scheme), scheme, copies)

    def hf_parameters(self, config: C, source: TensorSource) -> dict[str, Array]:
        """All parameters by our id from a Hugging Face checkpoint.

        Raises: InputError naming every tensor that is missing, extra or wrong.
        """
        return self.parameters(config, source, "hf").all_f32()

    def gguf_parameters(self, config: C, source: TensorSource) -> dict[str, Array]:
        """All parameters by our id from a GGUF file.

        Raises: InputError naming every tensor that is missing, extra or wrong.
        """
        return self.parameters(config, source, "gguf").all_f32()
