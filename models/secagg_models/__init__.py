"""Models: LoRA adapters, flattening and evaluation."""
