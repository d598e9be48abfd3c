"""How fast and how flat: `make bench` runs it all, `python -m benchmarks --help` parts of it."""
