"""Secure aggregation: the protocol core, sans-IO."""
