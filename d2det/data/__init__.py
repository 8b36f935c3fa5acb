"""Data sets as their authors distribute them, transforms, sampling and synthetic scenes."""
