"""Speed and quality, measured side by side; see ``benchmarks/README.md``."""
