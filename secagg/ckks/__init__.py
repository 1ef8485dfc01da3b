"""Scheme `ckks`: one-time CKKS keys that add up as the ciphertexts do.

`import secagg` loads its `parameters` alone, which plans are checked by. The rest is loaded when a
plan names the scheme, and needs the extra `secagg[ckks]`.
"""
