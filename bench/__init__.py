"""Benchmarks of the service, beside bare COPY and beside other tools: `scripts/bench`."""
