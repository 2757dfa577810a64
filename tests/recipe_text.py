"""Recipes taken apart: the commands in them, the flags of a command, the config inside a script."""

import ast
import shlex


def commands(recipe):
    """Return the commands of a recipe, continued lines joined."""
    lines = recipe.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def arguments(line):
    """Return the flags of a command with their values; a flag that is repeated keeps all of them."""
    words, found = shlex.split(line), {}
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        if flag.startswith("-") and not flag.lstrip("-").isdigit():
            found.setdefault(flag, []).append(value)
    return found


def modelopt_config(recipe):
    """Return the dictionary that the script passes to mtq.quantize."""
    for node in ast.parse(recipe).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CONFIG":
            return ast.literal_eval(node.value)
    raise AssertionError("no CONFIG")
