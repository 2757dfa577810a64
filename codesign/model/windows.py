"""Sliding windows: how many tokens each block attends to, None for all."""

from collections.abc import Callable

from codesign.model.config import BLOCKS_MAX, CONTEXT_MAX, Config, Key

Windows = tuple[int | None, ...]
WindowReader = Callable[[Config, int], Windows]


def no_windows(config: Config, block_count: int) -> Windows:
    """Return full attention in every block."""
    return (None,) * block_count


def every_block(default: int | None = None) -> WindowReader:
    """Return the reader of one window for all blocks."""

    def read(config: Config, block_count: int) -> Windows:
        return (_window(config, default),) * block_count

    return read


def all_but_every_nth(period: int, default: int, period_keys: Key = ()) -> WindowReader:
    """Return the reader of windows in all blocks but the last of each period, unless `layer_types` says otherwise."""

    def read(config: Config, block_count: int) -> Windows:
        window = _window(config, default)
        kinds = config.layer_types(block_count)
        if kinds is not None:
            return tuple(window if kind == "sliding_attention" else None for kind in kinds)
        n = config.integer(period_keys, BLOCKS_MAX, period) if period_keys else period
        return tuple(window if (i + 1) % n else None for i in range(block_count))

    return read


def later_blocks(config: Config, block_count: int) -> Windows:
    """Return the windows of Qwen: from block `max_window_layers` on, and only if `use_sliding_window` says so."""
    if not config.boolean("use_sliding_window", False):
        return no_windows(config, block_count)
    window = _window(config, None)
    kinds = config.layer_types(block_count)
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = config.integer("max_window_layers", BLOCKS_MAX, low=0)
    return tuple(window if i >= first else None for i in range(block_count))


def _window(config: Config, default: int | None) -> int | None:
    """Return the window; null means none, an absent key the family's default."""
    return config.optional_integer("sliding_window", CONTEXT_MAX, None if config.has("sliding_window") else default)
