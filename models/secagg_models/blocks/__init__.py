"""DiffusionBlocks: a residual network cut into blocks that each learn to remove noise alone.

Shing, Koyama, Akiba 2025 (arXiv:2506.14202), with the noise of EDM (Karras et al. 2022,
arXiv:2206.00364). A block needs nothing of the other blocks to be trained: a tenant can hold one
block's layers between the embeddings and the head, and train these alone.

    noise         which noise levels belong to which block, and EDM's factors
    partition     which layers belong to which block
    tasks         what is noised and guessed: the next token, a class, the next patch of a series
    conditioning  how a block is told the noise level and given the noisy target
    network       a model so cut, and one block's pass through it
    objective     a block's loss: pure, after the blocks before it, mixed with the ordinary loss
    training      one block, or all in turn
    sampler       guesses of all blocks together
    memory        bytes held by training
"""
