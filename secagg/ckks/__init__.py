"""Scheme `ckks`: one-time CKKS keys that add up as the ciphertexts do.

Loaded when a plan names the scheme, never by `import secagg`; needs the extra `secagg[ckks]`.
"""
