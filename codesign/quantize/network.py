"""A transformer that is run block by block: only one block's weights need to be in memory.

transformers says how blocks compute. What a block is called with (masks, positions) is recorded by running the model
with blocks that pass their input on.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codesign.errors import InputError
from codesign.quantize.activations import quantize_activations
from codesign.quantize.kv_cache import KvRounding, round_kv
from codesign.quantize.source import LayerInputs, WeightSource, transformers
from codesign.schemes.kv import KV_FORMATS

if TYPE_CHECKING:
    from torch import Tensor

    from codesign.quantize.pieces import Workers

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences [b, t] in the middle of the model: hidden states [b, t, hidden], and what each block is called with."""

    ids: "Tensor"
    hidden: "Tensor"
    calls: tuple[Call, ...]

    def with_hidden(self, hidden: "Tensor") -> "Batch":
        """Return the same sequences one block further."""
        return replace(self, hidden=hidden)


class Network:
    """A model whose blocks are loaded one at a time; embeddings, last norm and head stay. Everything is float32.

    The KV cache is rounded where the source asks for one of the formats of `schemes.kv`. `workers` are who does what
    need not be done in the order of the blocks, None for this process.
    """

    def __init__(self, source: WeightSource, device: str = "cpu", workers: "Workers | None" = None) -> None:
        if any(block.experts is not None for block in source.model.blocks):
            raise InputError(
                f"{source.model.name} has routed experts, whose weights are not measured yet; "
                "plan it with the published prior (codesign plan)."
            )
        self.source, self.device, self.workers = source, device, workers
        self.transformer = empty_transformer(source.config)
        self._name, self._blocks = _block_list(self.transformer, len(source.model.blocks))
        self._fill(self.transformer, "", skip=self._name + ".")
        self.transformer.tie_weights()
        if source.kv in KV_FORMATS:
            round_kv(self.transformer, KvRounding(KV_FORMATS[source.kv]))

    def with_source(self, source: WeightSource) -> "Network":
        """Return this network with the blocks of another source of the same model; the rest is shared."""
        other = copy.copy(self)
        other.source = source
        return other

    @property
    def block_count(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    def block_name(self, index: int) -> str:
        """Return the name of a block, such as `model.layers.3`."""
        return f"{self._name}.{index}"

    @contextmanager
    def block(self, index: int) -> Iterator[Any]:
        """Give a block with its weights, which are let go at the end; inputs are rounded as the source says."""
        block = self._blocks[index]
        self._fill(block, self.block_name(index) + ".")
        with ExitStack() as stack:
            for hook in self._input_hooks(block, self.block_name(index) + "."):
                stack.callback(hook.remove)
            try:
                yield block
            finally:
                block.to("meta")

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """Give the transformer with all of its weights, to generate or to differentiate."""
        with ExitStack() as stack:
            for index in range(self.block_count):
                stack.enter_context(self.block(index))
            yield self.transformer

    def loaded(self) -> Any:
        """Return the transformer with all of its weights for good; inputs are not rounded."""
        for index, block in enumerate(self._blocks):
            self._fill(block, self.block_name(index) + ".")
        return self.transformer

    def start(self, ids: "Tensor") -> Batch:
        """Return token ids [b, t] as they enter the first block."""
        entering: list[Tensor] = []
        calls: list[Call] = []

        def recorder(hidden: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
            entering.append(hidden)
            calls.append((args, kwargs))
            return hidden

        self._run_with([recorder] * self.block_count, ids, 1)
        return Batch(ids, entering[0], tuple(calls))

    def step(self, index: int, block: Any, batch: Batch) -> Batch:
        """Return the batch behind a block that `block` gave."""
        args, kwargs = batch.calls[index]
        out = block(batch.hidden, *args, **kwargs)
        return batch.with_hidden(out if not isinstance(out, tuple) else out[0])

    def logits(self, batch: Batch, last: int = 0) -> "Tensor":
        """Return the logits [b, t, vocabulary] behind the last block, or only those of so many last positions."""

        def give(_: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
            return batch.hidden

        def forward(hidden: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
            return hidden

        return self._run_with([forward] * (self.block_count - 1) + [give], batch.ids, last)

    def _run_with(self, forwards: list[Callable[..., "Tensor"]], ids: "Tensor", last: int) -> "Tensor":
        """Run the model with other functions in place of its blocks."""
        for block, forward in zip(self._blocks, forwards, strict=True):
            block.forward = forward
        try:
            out = self.transformer(input_ids=ids.to(self.device), use_cache=False, logits_to_keep=last)
        finally:
            for block in self._blocks:
                del block.forward
        logits: Tensor = out.logits
        return logits

    def _fill(self, module: Any, prefix: str, skip: str | None = None) -> None:
        """Load the parameters of a module; a tied head has none of its own."""
        import torch

        head = self.source.model.head.name + ".weight"
        for name, parameter in list(module.named_parameters()):
            if skip is not None and name.startswith(skip):
                continue
            if not self.source.has(prefix + name):
                if prefix + name == head and self.source.model.tied_embedding:
                    continue
                raise InputError(f"{self.source.model.name}: the files have no tensor {prefix + name}.")
            values = self.source.tensor(prefix + name)
            if values.shape != parameter.shape:
                raise InputError(
                    f"{prefix + name} is {tuple(values.shape)}, the config makes it {tuple(parameter.shape)}."
                )
            owner, _, leaf = name.rpartition(".")
            loaded = torch.nn.Parameter(values.to(self.device, torch.float32), requires_grad=False)
            module.get_submodule(owner)._parameters[leaf] = loaded

    def _input_hooks(self, block: Any, prefix: str) -> Iterator[Any]:
        import torch

        for name, module in block.named_modules():
            inputs = self.source.inputs(prefix + name) if isinstance(module, torch.nn.Linear) else None
            if inputs is not None:
                yield module.register_forward_pre_hook(input_rounding(inputs))


def input_rounding(inputs: LayerInputs) -> Callable[..., "Tensor"]:
    """Return a hook that does to a layer's inputs what its scheme does."""

    def hook(_: Any, arguments: tuple["Tensor", ...]) -> "Tensor":
        x = arguments[0]
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if inputs.rotation is None else inputs.rotation.apply(rows)
        return quantize_activations(rows, inputs.format, inputs.fixed).reshape(x.shape)

    return hook


def empty_transformer(config: Any) -> Any:
    """Return the model of a configuration without weights; what is computed from the configuration is there."""
    import torch

    with torch.device("meta"):
        transformer: Any = transformers().AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
        )
    for module in transformer.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            transformer._init_weights(module)
    return transformer.eval()


def _block_list(transformer: Any, count: int) -> tuple[str, Any]:
    """Return the name and the list of the model's blocks."""
    import torch

    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise InputError(f"{type(transformer).__name__}: no list of {count} blocks is found in this architecture.")
