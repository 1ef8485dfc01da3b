"""Generated code of the package secagg.v1; `protos/generate.sh` writes it."""
