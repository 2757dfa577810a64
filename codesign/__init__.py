"""Plan the bit-widths of a language model for real hardware."""
