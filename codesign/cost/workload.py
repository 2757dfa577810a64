"""What is asked of a deployment."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: `batch` sequences in flight, each with a prompt and a number of new tokens."""

    batch: int
    prompt_tokens: int
    output_tokens: int

    @property
    def mean_context_tokens(self) -> float:
        """Return how many tokens the middle decode step attends to, the new one included."""
        return self.prompt_tokens + (self.output_tokens + 1) / 2

    @property
    def final_context_tokens(self) -> int:
        """Return the tokens that the cache must hold for each sequence at the end."""
        return self.prompt_tokens + self.output_tokens
