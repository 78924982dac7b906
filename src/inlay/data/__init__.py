"""Data to learn from: files, splits, samples and templates."""

from inlay.data.dataset import Dataset, Example, Stream
from inlay.data.loading import load, stream

__all__ = ["Dataset", "Example", "Stream", "load", "stream"]
