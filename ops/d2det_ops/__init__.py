"""Compiled operators of the detector, each with a pure-PyTorch twin."""
