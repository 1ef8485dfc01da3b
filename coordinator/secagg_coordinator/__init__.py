"""The coordinator node: drives rounds, and learns sums only."""
