"""The demonstration and the benchmarks: they drive the public commands only."""
