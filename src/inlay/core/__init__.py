"""The words of the library: methods, pieces, sites."""
