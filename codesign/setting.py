"""The inputs that `plan` and `predict` share, with their defaults; plain values, nothing heavy."""

from dataclasses import dataclass

DEFAULT_BATCH, DEFAULT_PROMPT_TOKENS, DEFAULT_OUTPUT_TOKENS = 1, 1024, 256
DEFAULT_MAX_LOSS_NATS = 0.05


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is deployed and what the planner may use; empty texts mean the usual choice for the machine.

    `kv` is a KV format or "auto" (the planner chooses); `schemes` restricts the planner to some names; `method` is a
    quantization method of the quality prior; `anchor` is one measured loss that narrows it, as SCHEME:METHOD=NATS;
    `quality_file` replaces the prior by measured losses; `sheet_files` go before the shipped kernel sheets. Routed
    experts are divided over `expert_parallel` of the `gpu_count` devices, and each expert's matrices over the rest.
    With a `text` file, plans near the best are measured on it with the `weights` at that path.
    `engine` is what issues the kernels, a class or name of `cost/engine.py`; `thread_count` the threads of a CPU.
    """

    batch: int = DEFAULT_BATCH
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    output_tokens: int = DEFAULT_OUTPUT_TOKENS
    library: str = ""
    gpu_count: int = 1
    price_usd_per_hour: float | None = None
    kv: str = ""
    schemes: tuple[str, ...] = ()
    method: str = ""
    anchor: str = ""
    quality_file: str | None = None
    allow_unknown_quality: bool = False
    expert_parallel: int = 1
    sheet_files: tuple[str, ...] = ()
    engine: str = ""
    thread_count: int | None = None
    text: str = ""
    weights: str = ""


DEFAULT_SETTING = Setting()
