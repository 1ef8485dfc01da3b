"""The tenant node: holds its private data and keys, trains, and joins rounds."""
