"""Models: the base model, LoRA adapters, flattening, training and evaluation on private text.

Import the module that is needed (`secagg_models.lora`, `secagg_models.train`, ...): this package
itself imports nothing, so that a command's `--help` never loads torch.
"""
