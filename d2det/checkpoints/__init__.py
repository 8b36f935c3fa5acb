"""Weights files with their metadata, and conversion of official checkpoints."""
