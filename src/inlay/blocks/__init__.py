"""Parts that several methods use: bottlenecks, norms, starting values, prefixes."""
