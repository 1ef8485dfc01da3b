"""What a tenant checks of a model that somebody else made, before anything is trained with it.

Whoever makes the model can make what leaves a tenant tell more: near-identity layers that carry
inputs unchanged to trained weights, and units in steps that keep one input each (Fowl et al. 2022,
"Robbing the Fed", arXiv:2110.13057; PEFTLeak, CVPR 2025, arXiv:2506.04453). These checks look for
the marks of such crafting in the configuration (`configuration`), in the tensors (`weights`) and in
what the layers do with text (`behaviour`); `limits` has every figure, its limit, and the worst that
honest models showed.

A pass says that these checks passed, never that a model is safe: `limits.NOT_CAUGHT` says what
passes them. Secure aggregation and its bounds do not rest on them. This package itself imports
nothing heavy.
"""
