"""The wire of secagg.v1: protobuf messages and the codec between them and the core's values."""
