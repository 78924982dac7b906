"""The version, read by the build and by the files inlay writes."""

__version__ = "0.1.0"
