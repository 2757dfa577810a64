"""Which published model a model is, or is related to: by name."""

import re

# Related models take 4-bit weights alike (docs/quality-prior.md): above all training tokens per parameter matter.
_FAMILIES = (
    (r"llama-[12]-|yi-|codellama|vicuna", "llama-2"),
    (r"llama-3", "llama-3"),
    (r"opt-", "opt"),
    (r"falcon", "falcon"),
    (r"mi[sx]tral|zephyr|neural-chat", "mistral"),
    (r"phi-", "phi"),
    (r"qwen|deepseek-r1-distill-qwen", "qwen"),
    (r"gemma", "gemma"),
    (r"pythia|redpajama", "pythia"),
    (r"stablelm", "stablelm"),
    (r"smollm", "smollm"),
)
_TUNED = re.compile(r"-(instruct|chat|it|dpo|sft)(-.*)?$")
_UNIMPORTANT = re.compile(r"-(hf|base|pt|v\d[\d.]*|\d{4})$")


def published_name(name: str) -> str:
    """Return a model name as the published tables spell it, such as `llama-2-7b` for `meta-llama/Llama-2-7b-hf`."""
    word = name.rsplit("/", 1)[-1].lower().replace("_", "-").removeprefix("meta-").partition("(")[0]
    word = re.sub(r"^llama-?([23])(?=[-.])", r"llama-\1", word)
    word = re.sub(r"^llama-(?=(7|13|30|33|65)b)", "llama-1-", word).replace("llama-1-33b", "llama-1-30b")
    shorter = _UNIMPORTANT.sub("", word)
    while shorter != word:
        word, shorter = shorter, _UNIMPORTANT.sub("", shorter)
    return word


def untuned_name(name: str) -> str:
    """Return the published name of the base model of a chat or instruct model."""
    return _TUNED.sub("", published_name(name))


def family_of(name: str) -> str:
    """Return the family of a model name, "other" if it is in none."""
    word = published_name(name)
    return next((family for pattern, family in _FAMILIES if re.match(pattern, word)), "other")
