"""Weights and activations rounded, calibrated and packed. torch is imported inside functions only."""
