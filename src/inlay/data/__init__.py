"""Rows to learn from: files, splits and templates."""

from inlay.data.dataset import Dataset, Example, load

__all__ = ["Dataset", "Example", "load"]
