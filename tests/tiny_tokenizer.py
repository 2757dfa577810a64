"""A tokenizer that knows single characters, for tiny models."""

from pathlib import Path

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'\"-()\n"


def save_tokenizer(folder: Path, characters: str = CHARACTERS) -> Path:
    """Write the tokenizer into a model's folder and return the folder: ids are places in `characters`, then unknown."""
    import tokenizers
    import transformers

    vocabulary = {character: i for i, character in enumerate(characters)}
    model = tokenizers.models.WordLevel({**vocabulary, "<unk>": len(vocabulary)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder
