"""The bridge to Microsoft SEAL: sums of packing `slots` become ciphertexts that TenSEAL works on.

Slots are those of Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate
Numbers", ASIACRYPT 2017, section 3.2, as SEAL's CKKSEncoder orders them. A ciphertext of this
project is (c, a) with c = -a s + e + m; SEAL's Decryptor computes c + a s, which is what it opens.

The only module that loads TenSEAL, and nothing loads it but who needs it. SEAL reads and writes its
objects through named files; a blob that it reads is always built here, from residues that were
checked against their primes. Bytes of a peer never reach SEAL's deserialiser, which is C++ that
nobody wrote for hostile input.

What this module does not do: it draws no keys and no errors, it never encrypts, and it makes no
relinearisation or rotation keys. A one-time key that a round has opened protects nothing more.
Layouts are those of SEAL 4.x (native/src/seal: serialization.h, plaintext.cpp, ciphertext.cpp).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, final

import numpy as np
import numpy.typing as npt

from secagg.errors import ConfigError, UsageError

try:
    import tenseal
    from tenseal import sealapi
    from tenseal.sealapi import util as sealapi_util
except ImportError as error:
    raise ConfigError(
        "packing slots needs TenSEAL, which is not installed; run: pip install 'secagg[ckks]'"
    ) from error

Residues: TypeAlias = npt.NDArray[np.uint32]
"""One polynomial, (L, N), NTT form in SEAL's order, row l below prime l."""

_MAGIC: Final = 0xA15E
_HEADER: Final = struct.Struct("<HBBBBHQ")
_UNCOMPRESSED: Final = 0
_WIDEST_PRIME: Final = 60
"""Bits of the largest prime that SEAL takes."""


@final
class SealContext:
    """SEAL's context over our primes, and what can be done with a sum in it.

    SEAL wants one more prime, for switching between keys, that carries no data. Here it is the
    smallest that fits: no such key is ever made, and a small one leaves the data their bits where
    SEAL's own check of security counts it (`TenSEAL` contexts cannot be made without that check).

    Raises: ConfigError where SEAL refuses degree or primes.
    """

    __slots__ = ("_encoder", "_evaluator", "_id", "_parameters", "_seal", "degree",
                 "key_prime", "primes")  # fmt: skip

    def __init__(self, degree: int, primes: Sequence[int], key_prime: int | None = None) -> None:
        self.degree: Final = degree
        self.primes: Final = tuple(map(int, primes))
        self.key_prime: Final = key_prime or _smallest_prime(degree, self.primes)
        self._parameters = _parameters(degree, (*self.primes, self.key_prime))
        self._seal = sealapi.SEALContext(self._parameters, True, sealapi.SEC_LEVEL_TYPE.NONE)
        if not self._seal.parameters_set():
            raise ConfigError(f"SEAL refuses the ring: {self._seal.parameters_error_message()}")
        self._id = self._seal.first_parms_id()
        self._encoder = sealapi.CKKSEncoder(self._seal)
        self._evaluator = sealapi.Evaluator(self._seal)

    @property
    def slots(self) -> int:
        """Real numbers that one ciphertext carries."""
        return self.degree // 2

    @property
    def seal(self) -> sealapi.SEALContext:
        """For what this class does not offer: the objects it returns are SEAL's own."""
        return self._seal

    def validate_security(self) -> None:
        """Asks SEAL whether it counts our ring as 128-bit secure (classical, HE standard v1.1).

        The primes of the data alone: the key-level prime is in no ciphertext and in no public key.
        Raises: ConfigError where SEAL does not.
        """
        ring = _parameters(self.degree, self.primes)
        context = sealapi.SEALContext(ring, False, sealapi.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            have = math.prod(self.primes).bit_length()
            most = sealapi.CoeffModulus.MaxBitCount(self.degree, sealapi.SEC_LEVEL_TYPE.TC128)
            raise ConfigError(
                f"SEAL does not count {have} bits of primes at degree {self.degree} as 128-bit"
                f" secure (its table allows {most}): {context.parameters_error_message()}"
            )

    # Slots to residues and back.

    def encode_slots(self, values: npt.NDArray[np.float64], scale: float) -> Residues:
        """`values` (at most N/2, finite) times `scale`, as the residues of one plaintext.

        Missing slots are zero. Tenants use slots.py, which is faster: SEAL's bindings hand out one
        word at a time. Raises: UsageError where a value does not fit in the primes.
        """
        if max(self.primes) >> 32:
            raise UsageError("residues of these primes do not fit in 32 bits")
        plain = self._encoded(values, self._id, scale)
        words = _words(plain.data, plain.coeff_count())
        return words.reshape(len(self.primes), self.degree).astype(np.uint32)

    def decode_slots(self, residues: Residues, scale: float) -> npt.NDArray[np.float64]:
        """What `encode_slots` took, all (N/2,) slots of it."""
        words = self._checked(residues)
        body = (
            _identifier(self._id)
            + struct.pack("<Qd", words.size, _checked_scale(scale))
            + _array(words)
        )
        plain = sealapi.Plaintext()
        _load(plain, self._seal, _blob(body))
        return np.array(self._encoder.decode_double(plain))

    # Ciphertexts and keys.

    def ciphertext(self, c: Residues, a: Residues, scale: float) -> sealapi.Ciphertext:
        """(c, a) as SEAL's ciphertext; under the key s it decrypts to c + a s."""
        encrypted = sealapi.Ciphertext()
        _load(encrypted, self._seal, self._ciphertext_blob(c, a, scale))
        return encrypted

    def secret_key(self, s: npt.NDArray[np.int32]) -> sealapi.SecretKey:
        """The key of which `s` (N,) holds the signed coefficients."""
        key = sealapi.SecretKey()
        _load(key, self._seal, self._key_blob(s))
        return key

    def decrypt(
        self, encrypted: sealapi.Ciphertext, key: sealapi.SecretKey
    ) -> npt.NDArray[np.float64]:
        """All (N/2,) slots, by SEAL's Decryptor at whatever level the ciphertext is."""
        plain = sealapi.Plaintext()
        with _refusals():
            sealapi.Decryptor(self._seal, key).decrypt(encrypted, plain)
            return np.array(self._encoder.decode_double(plain))

    # What can be computed before anything is decrypted.

    def add(self, first: sealapi.Ciphertext, second: sealapi.Ciphertext) -> sealapi.Ciphertext:
        """Slot by slot; both of one key, one level and one scale."""
        result = sealapi.Ciphertext()
        with _refusals():
            self._evaluator.add(first, second, result)
        return result

    def add_plain(
        self, encrypted: sealapi.Ciphertext, values: npt.NDArray[np.float64]
    ) -> sealapi.Ciphertext:
        """`values` added to the slots; the others keep what they have."""
        plain = self._encoded(values, encrypted.parms_id(), encrypted.scale)
        result = sealapi.Ciphertext()
        with _refusals():
            self._evaluator.add_plain(encrypted, plain, result)
        return result

    def multiply_plain(
        self, encrypted: sealapi.Ciphertext, weights: npt.NDArray[np.float64], *, spend: int = 1
    ) -> sealapi.Ciphertext:
        """Slots times `weights` (missing ones are zero), rescaled to the scale that it had.

        It spends the last `spend` of the ciphertext's primes: weights are rounded to about as many
        bits as those have together. SEAL makes no empty ciphertext: all zero is a UsageError.
        """
        level = encrypted.parms_id()
        left = encrypted.coeff_modulus_size()
        if not 0 < spend < left:
            raise UsageError(f"spend is 1 to {left - 1}: the ciphertext has {left} primes left")
        plain = self._encoded(weights, level, float(math.prod(self.primes[left - spend : left])))
        result, scale = sealapi.Ciphertext(), encrypted.scale
        with _refusals():
            self._evaluator.multiply_plain(encrypted, plain, result)
            for _ in range(spend):
                self._evaluator.rescale_to_next_inplace(result)
        result.scale = scale  # exact but for the last bit of a double
        return result

    # TenSEAL's own objects.

    def tenseal_context(self, s: npt.NDArray[np.int32], scale: float) -> tenseal.Context:
        """A TenSEAL context that holds the key `s`: its vectors decrypt without another word.

        Rescaling is left to the caller, because TenSEAL then sets the scale back to what it was at
        first, which is right only where primes are as large as the scale.

        Raises: ConfigError where TenSEAL's SEAL does not count the ring as secure, the key-level
        prime included; `SealContext` itself has no such limit.
        """
        private = _field(1, self._key_blob(s))
        public = _field(2, _AUTO_MOD_SWITCH) + _field(3, _checked_scale(scale))
        proto = b"".join([
            _field(1, _saved(self._parameters)), _field(2, public), _field(3, private),
            _field(4, _SYMMETRIC),
        ])  # fmt: skip
        try:
            return tenseal.Context.load(proto)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"TenSEAL refuses this ring: {error}") from error

    def tenseal_vector(
        self,
        context: tenseal.Context,
        ciphertexts: Sequence[tuple[Residues, Residues]],
        length: int,
        scale: float,
    ) -> tenseal.CKKSVector:
        """(c, a) of successive polynomials as one vector of `length` values."""
        if not (len(ciphertexts) - 1) * self.slots < length <= len(ciphertexts) * self.slots:
            raise UsageError(f"{len(ciphertexts)} ciphertexts do not hold {length} values exactly")
        sizes = [min(self.slots, length - start) for start in range(0, length, self.slots)]
        proto = b"".join([
            *(_field(1, size) for size in sizes),
            *(_field(2, self._ciphertext_blob(c, a, scale)) for c, a in ciphertexts),
            _field(3, scale),
        ])  # fmt: skip
        return tenseal.CKKSVector.load(context, proto)

    def from_tenseal(self, vector: tenseal.CKKSVector) -> list[sealapi.Ciphertext]:
        """The ciphertexts of a vector of this process, whose context has this one's primes."""
        taken = []
        for encrypted in vector.ciphertext():
            with _named_file() as (_, path), _refusals():
                encrypted.save(path)
                taken.append(sealapi.Ciphertext())
                taken[-1].load(self._seal, path)
        return taken

    def _encoded(
        self, values: npt.NDArray[np.float64], level: list[int], scale: float
    ) -> sealapi.Plaintext:
        if values.ndim != 1 or not 0 < len(values) <= self.slots:
            raise UsageError(f"a plaintext takes 1 to {self.slots} values, not {values.shape}")
        if not np.isfinite(values).all():
            raise UsageError("values contain infinities or NaN")
        plain = sealapi.Plaintext()
        with _refusals():
            self._encoder.encode(values.tolist(), level, _checked_scale(scale), plain)
        return plain

    def _checked(self, residues: Residues) -> npt.NDArray[np.uint64]:
        """As words, or UsageError: what is built into a blob is a polynomial of this ring."""
        shape = len(self.primes), self.degree
        if residues.dtype.kind != "u" or residues.shape != shape:
            raise UsageError(
                f"a polynomial is uint32 {shape}, not {residues.dtype} {residues.shape}"
            )
        words = residues.astype("<u8")
        if (words >= np.array(self.primes, np.uint64)[:, None]).any():
            raise UsageError("a residue is not below its prime")
        return words

    def _ciphertext_blob(self, c: Residues, a: Residues, scale: float) -> bytes:
        words = np.stack([self._checked(c), self._checked(a)])
        ntt_form, correction = 1, 1
        body = struct.pack(
            "<BQQQdQ", ntt_form, len(words), self.degree, len(self.primes), _checked_scale(scale),
            correction,
        )  # fmt: skip
        return _blob(_identifier(self._id) + body + _array(words))

    def _key_blob(self, s: npt.NDArray[np.int32]) -> bytes:
        """SEAL's keys live at the key level: NTT form over all primes, scale 1."""
        if s.dtype.kind != "i" or s.shape != (self.degree,):
            raise UsageError(f"a key has {self.degree} signed coefficients, not {s.shape}")
        coefficients = s.astype(np.int64)
        words = np.array([
            sealapi_util.ntt_negacyclic_harvey((coefficients % q).tolist(), self._tables_of(q))
            for q in (*self.primes, self.key_prime)
        ], "<u8")  # fmt: skip
        plain = _identifier(self._seal.key_parms_id()) + struct.pack("<Qd", words.size, 1.0)
        return _blob(plain + _array(words))

    def _tables_of(self, prime: int) -> sealapi_util.NTTTables:
        return sealapi_util.NTTTables(self.degree.bit_length() - 1, sealapi.Modulus(prime))


def words_of(encrypted: sealapi.Ciphertext) -> npt.NDArray[np.uint64]:
    """The polynomials of a ciphertext, (2, primes left, N), as SEAL holds them."""
    array = encrypted.dyn_array()
    shape = encrypted.size(), encrypted.coeff_modulus_size(), encrypted.poly_modulus_degree()
    return _words(array.at, array.size()).reshape(shape)


def _parameters(degree: int, primes: tuple[int, ...]) -> sealapi.EncryptionParameters:
    if any(q.bit_length() > _WIDEST_PRIME for q in primes):
        raise ConfigError(f"SEAL takes primes of at most {_WIDEST_PRIME} bits")
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    with _refusals(ConfigError):
        parameters.set_poly_modulus_degree(degree)
        parameters.set_coeff_modulus([sealapi.Modulus(q) for q in primes])
    return parameters


def _smallest_prime(degree: int, taken: tuple[int, ...]) -> int:
    """The smallest prime that has the ring's roots of unity and is not `taken`."""
    candidate = 2 * degree + 1
    while candidate in taken or not _is_prime(candidate):
        candidate += 2 * degree
    return candidate


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2))


def _checked_scale(scale: float) -> float:
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"a scale is a positive number, not {scale}")
    return float(scale)


@contextmanager
def _refusals(kind: type[UsageError] | type[ConfigError] = UsageError) -> Iterator[None]:
    """SEAL's exceptions in our words; its messages name parameters and no value."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise kind(f"SEAL refuses this: {error}") from error


def _words(at: Callable[[int], int], count: int) -> npt.NDArray[np.uint64]:
    """SEAL's words one by one: it saves to files alone, in a compression that Python cannot read,
    and what is read here may be a tenant's plaintext, which is kept off the disk."""
    return np.fromiter(map(at, range(count)), np.uint64, count)


# SEAL's serialisation, uncompressed.


def _blob(body: bytes) -> bytes:
    version = sealapi.Serialization.SEALHeader()
    size = _HEADER.size + len(body)
    return _HEADER.pack(
        _MAGIC, _HEADER.size, version.version_major, version.version_minor, _UNCOMPRESSED, 0, size
    ) + body  # fmt: skip


def _identifier(level: list[int]) -> bytes:
    return struct.pack("<4Q", *level)


def _array(words: npt.NDArray[np.uint64]) -> bytes:
    return _blob(struct.pack("<Q", words.size) + words.tobytes())


def _load(target: Any, context: sealapi.SEALContext, blob: bytes) -> None:
    with _named_file() as (file, path):
        _write(file, blob)
        with _refusals():
            target.load(context, path)


def _saved(parameters: sealapi.EncryptionParameters) -> bytes:
    with _named_file() as (file, path):
        parameters.save(path)
        os.lseek(file, 0, os.SEEK_SET)
        return os.read(file, 1 << 20)


def _write(file: int, blob: bytes) -> None:
    left = memoryview(blob)
    while left:
        left = left[os.write(file, left) :]


@contextmanager
def _named_file() -> Iterator[tuple[int, str]]:
    """A file descriptor, and a path that SEAL finds it under.

    On Linux it is memory. Elsewhere it is a file that only this user can read and that is gone when
    the call returns: it may hold an aggregate's ciphertext or its opened key, never a tenant's.
    """
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        file = os.memfd_create("secagg-seal")
        try:
            yield file, f"/proc/self/fd/{file}"
        finally:
            os.close(file)
    else:
        folder = os.environ.get("TMPDIR") or os.environ.get("TEMP") or "/tmp"  # noqa: S108
        path = os.path.join(folder, f"secagg-seal-{os.urandom(16).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.open(path, flags, 0o600)
        try:
            yield file, path
        finally:
            os.close(file)
            os.unlink(path)


# TenSEAL's protocol buffers (tenseal/proto/*.proto), which its Python package does not export.

_AUTO_MOD_SWITCH: Final = 4
_SYMMETRIC: Final = 1


def _field(number: int, value: int | float | bytes) -> bytes:
    match value:
        case bytes():
            return _varint(number << 3 | 2) + _varint(len(value)) + value
        case int():
            return _varint(number << 3) + _varint(value)
        case _:
            return _varint(number << 3 | 1) + struct.pack("<d", value)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number >> 7:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
