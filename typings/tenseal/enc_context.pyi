from enum import Enum
from typing import Any

class SCHEME_TYPE(Enum):
    NONE = ...
    BFV = ...
    CKKS = ...

class SecretKey:
    data: Any

class Context:
    global_scale: float
    auto_mod_switch: bool
    auto_relin: bool
    auto_rescale: bool
    def is_private(self) -> bool: ...
    def make_context_public(self) -> None: ...
    def secret_key(self) -> SecretKey: ...
    def serialize(
        self,
        save_public_key: bool = True,
        save_secret_key: bool = False,
        save_galois_keys: bool = True,
        save_relin_keys: bool = True,
    ) -> bytes: ...
    @classmethod
    def load(cls, data: bytes, n_threads: int | None = None) -> Context: ...
