"""A participant in one round: the shell around the pure steps of `participant_steps.py`.

The shell keeps the one current state, writes every act into the ledger before it hands the act's
message out, answers a repeated request with the same bytes, and streams the upload. It performs
no I/O of its own: hosts execute the returned outputs in order (`outputs.py`).

    participant = Participant(plan, identity=..., roster=..., policy=..., ledger=...)
    host.execute(participant.start())
    host.execute(participant.receive(message))      # for every message of the aggregator
    host.execute(participant.submit(delta, weight)) # once `participant.ready`
    for piece in participant.upload(): ...
    host.execute(participant.finish_upload())

What `Finished` does not imply: that the sum was opened, or is right. It says that this
participant's part is done; the sum is authentic only if recomputed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from secagg import merkle
from secagg import participant_steps as steps
from secagg.canonical import Reader, Writer
from secagg.checks import Setting
from secagg.encoding import Values
from secagg.errors import (
    ConfigError,
    DeadlineExpired,
    FaultyCoordinator,
    MalformedMessage,
    PolicyRefused,
    ProtocolError,
    RoundAborted,
    StaleState,
    Step,
    UsageError,
)
from secagg.identity import Identity, Roster, sha256
from secagg.ledger import Act, Entry, Ledger
from secagg.messages import (
    AgreedView,
    Downlink,
    KeyDirectory,
    Quorum,
    ShareDelivery,
    SurvivorSet,
    decode_message,
    downlink_step,
)
from secagg.outputs import Aborted, Finished, ParticipantOutput, Persist, Send
from secagg.participant_steps import (
    Acknowledged,
    Advertised,
    Agreed,
    Answered,
    Confirmed,
    Dealt,
    Self,
    State,
    Uploaded,
    Uploading,
)
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.records import decode, encode
from secagg.scheme import leaf_places, scheme_of, upload_bytes
from secagg.secret import Randomness, SealKey
from secagg.suite import TAG_BYTES
from secagg.upload import Upload, input_digests

_NO_REQUEST = bytes(32)
_LEAF_BATCH = 16
_NONCE_BYTES = 12
_STATES: dict[str, tuple[type[State], int, Step]] = {
    # state: (type, acts in the ledger when it is reached, the step that it waits in)
    "Advertised": (Advertised, 1, Step.ADVERTISE_KEYS),
    "Dealt": (Dealt, 2, Step.SHARE_KEYS),
    "Acknowledged": (Acknowledged, 3, Step.ACKNOWLEDGE),
    "Agreed": (Agreed, 3, Step.MASKED_INPUT),
    "Uploading": (Uploading, 4, Step.MASKED_INPUT),
    "Uploaded": (Uploaded, 5, Step.CONSISTENCY_CHECK),
    "Confirmed": (Confirmed, 6, Step.UNMASK),
    "Answered": (Answered, 7, Step.UNMASK),
}


class Participant:
    """One identity in one round. See the module's docstring for the order of calls.

    `randomness` is `os.urandom` everywhere but in tests. With a `seal_key`, every ledger entry
    carries the sealed state, from which `restore` continues after a crash.

    Raises:
        PolicyRefused: the plan is not what this participant takes part in; nothing was sent.
    """

    def __init__(
        self,
        plan: RoundPlan,
        *,
        identity: Identity,
        roster: Roster,
        policy: Policy,
        ledger: Ledger,
        randomness: Randomness = os.urandom,
        seal_key: SealKey | None = None,
    ) -> None:
        self._me = _myself(plan, identity, roster)
        self._policy = policy
        self._ledger = ledger
        self._randomness = randomness
        self._seal_key = seal_key
        self._state: State | None = None
        self._over: str | None = None
        self._upload: Upload | None = None

    # ------------------------------------------------------------------ what it is

    @property
    def plan(self) -> RoundPlan:
        """The round's plan."""
        return self._me.setting.plan

    @property
    def step(self) -> Step:
        """The step that this participant is in."""
        if self._state is None:
            return Step.ADVERTISE_KEYS
        return _STATES[type(self._state).__name__][2]

    @property
    def ready(self) -> bool:
        """Whether it waits for `submit`."""
        return isinstance(self._state, Agreed)

    @property
    def upload_size(self) -> int:
        """Packed bytes of the whole upload."""
        return upload_bytes(self.plan)

    def __repr__(self) -> str:
        name = type(self._state).__name__ if self._state else "not started"
        return f"Participant({self._me.identity.tenant!r}, round {self.plan.round_number}, {name})"

    # ------------------------------------------------------------------ the steps

    def start(self) -> list[ParticipantOutput]:
        """Step 0: check the plan against the policy, join the ledger, advertise keys.

        Raises:
            PolicyRefused: names the clause.
            StaleState: this identity has already joined a round with this number.
        """
        if self._state is not None or self._over is not None:
            raise UsageError("this round was started before; each round takes a new Participant")
        identity = self._me.identity
        self._policy.check(self.plan, identity.tenant, self._ledger.last_round(identity.public_key))
        state, signed = steps.advertise_keys(self._me, self._randomness)
        self._ledger.join(identity.public_key, self.plan.context, self.plan.round_number)
        return self._act(Act.JOINED, _NO_REQUEST, state, encode(signed))

    def receive(self, message: bytes) -> list[ParticipantOutput]:
        """Take one message of the aggregator.

        Raises:
            ProtocolError: the message was refused; this participant is as it was before.
        """
        if self._state is None and self._over is None:
            raise UsageError("call start() first")
        parsed = decode_message(message)
        if not isinstance(parsed, Downlink):
            raise MalformedMessage("this message is not for participants")
        request = sha256(message)
        if (again := self._answered_before(parsed, request)) is not None:
            return again
        if self._over is not None:
            raise ProtocolError(
                f"the round is over for this participant: {self._over}", step=downlink_step(parsed)
            )
        match self._state, parsed:
            case Advertised() as state, KeyDirectory() as directory:
                dealt, share_keys = steps.share_keys(self._me, state, directory, self._randomness)
                return self._act(Act.DEALT, request, dealt, encode(share_keys))
            case Dealt() as state, ShareDelivery() as delivery:
                held, signed = steps.acknowledge(self._me, state, delivery)
                return self._act(Act.ACKNOWLEDGED, request, held, encode(signed))
            case Acknowledged() as state, AgreedView() as view:
                self._state = steps.agree(self._me, state, view)
                return []
            case Uploaded() as state, SurvivorSet() as survivors:
                confirmed, signed = steps.consistency_check(self._me, state, survivors)
                return self._act(Act.SIGNED_SURVIVORS, request, confirmed, encode(signed))
            case Confirmed() as state, Quorum() as quorum:
                answered, signed = steps.unmask(self._me, state, quorum)
                outputs = self._act(Act.ANSWERED, request, answered, encode(signed))
                self._close("it has answered")
                return [*outputs, Finished()]
            case _:
                raise ProtocolError(
                    f"{type(parsed).__name__} does not belong in {self.step.label}",
                    step=downlink_step(parsed),
                )

    def submit(self, vector: Values, weight: int = 1) -> list[ParticipantOutput]:
        """Step 3: bind this round to one input, (d,) float32 or float64, finite; it is spent now.

        `vector` is read while the upload streams and must not change until `finish_upload`. After
        a restart in the middle of an upload, submit the same input again.

        Raises:
            UsageError: not the plan's shape, not finite, a weight out of range, or not `ready`.
            SpentInput: this input left in an earlier round.
            StaleState: a restart with another input than the one that was leaving.
        """
        self._require_live()
        spent, digest = input_digests(self.plan, vector, weight)
        match self._state:
            case Agreed() as agreed:
                state, header = steps.begin_upload(
                    self._me, agreed, digest, weight, self._randomness
                )
                upload = self._new_upload(state, vector)  # what cannot be protected is not spent
                self._ledger.spend(self._me.identity.public_key, spent, self.plan.context)
                outputs = self._act(Act.UPLOAD_BEGUN, agreed.request, state, encode(header))
            case Uploading() as state:
                if state.input_digest != digest:
                    raise self._abandon("another input was submitted after part of one had left")
                upload = self._new_upload(state, vector)
                outputs = [Send(self._message_of(Act.UPLOAD_BEGUN))]
            case _:
                raise UsageError("submit() comes after the agreed view and before the upload ends")
        self._upload = upload
        return outputs

    def upload(self, offset: int = 0) -> Iterator[bytes]:
        """The packed, masked bytes from `offset` on, at most one leaf (256 KiB) a piece.

        The hash of every leaf is in the ledger before its first byte is yielded. A recomputed leaf
        with another hash ends the round: two uploads under one mask would tell their difference.
        """
        upload = self._running_upload()
        if not 0 <= offset <= self.upload_size:
            raise UsageError(f"an upload of {self.upload_size} bytes has no offset {offset}")
        first, skip = _leaf_at(self.plan, offset)
        sent = len(self._ledger.leaves(self._me.identity.public_key, self.plan.context))
        if first > sent:
            raise UsageError(f"{sent} leaves have been uploaded; go on there or before")
        for start in range(first, len(upload.places), _LEAF_BATCH):
            stop = min(start + _LEAF_BATCH, len(upload.places))
            leaves = [upload.leaf(number) for number in range(start, stop)]
            self._record_leaves(start, [merkle.bulk_leaf_hash(leaf) for leaf in leaves])
            for leaf in leaves:
                yield leaf[skip:]
                skip = 0

    @property
    def upload_root(self) -> bytes:
        """The Merkle root over the upload's leaves, when all have been yielded: what is signed."""
        hashes = self._ledger.leaves(self._me.identity.public_key, self.plan.context)
        missing = len(leaf_places(self.plan)) - len(hashes)
        if missing:
            raise UsageError(f"{missing} leaves have not been uploaded yet")
        return merkle.root(hashes)

    def finish_upload(self) -> list[ParticipantOutput]:
        """Sign the root of what was uploaded. The mask seeds are dropped."""
        self._require_live()
        if isinstance(self._state, Uploaded):
            return [Send(self._message_of(Act.UPLOAD_COMMITTED))]
        if not isinstance(self._state, Uploading):
            raise UsageError("finish_upload() comes after submit() and upload()")
        state, signed = steps.commit_upload(self._me, self._state, self.upload_root)
        if self._upload is not None:
            self._upload.forget_masks()
        return self._act(Act.UPLOAD_COMMITTED, _NO_REQUEST, state, encode(signed))

    def on_deadline(self) -> list[ParticipantOutput]:
        """The host's clock says that the aggregator is silent for longer than the plan allows."""
        if self._over is not None:
            return []
        error = DeadlineExpired(
            f"{self.step.label}: the aggregator did not answer in time", step=self.step
        )
        return self._abort(error)

    def abort(self, reason: str) -> list[ParticipantOutput]:
        """Leave the round: secrets are dropped, and the ledger refuses to continue it."""
        if self._over is not None:
            return []
        return self._abort(RoundAborted(f"{self.step.label}: {reason}", step=self.step))

    # ------------------------------------------------------------------ local use of the encoding

    def encoded_levels(self) -> NDArray[np.int64]:
        """What this participant encoded, (d,) int64. Plaintext: never leaves the tenant."""
        return self._submitted().encoded_levels()

    def write_residual(self, out: NDArray[np.float32]) -> None:
        """Quantisation error of this upload, (d,) float32: the next round's error feedback."""
        self._submitted().write_residual(out)

    @property
    def saturated(self) -> int:
        """Coordinates that the plan's clip cut. Local knowledge; never sent."""
        return self._submitted().saturated

    # ------------------------------------------------------------------ sealed state

    def export(self, seal_key: SealKey) -> bytes:
        """The sealed state; keep it beside the ledger and never without it."""
        if self._state is None:
            raise UsageError("there is no state before start()")
        return _seal(self.plan, self._state, seal_key, self._randomness)

    @classmethod
    def restore(
        cls,
        data: bytes,
        seal_key: SealKey,
        *,
        plan: RoundPlan,
        identity: Identity,
        roster: Roster,
        policy: Policy,
        ledger: Ledger,
        randomness: Randomness = os.urandom,
    ) -> Participant:
        """Continue from an exported state.

        Raises:
            StaleState: the ledger has seen a later act (C33).
            MalformedMessage: not a state of this round under this key.
        """
        participant = cls(
            plan, identity=identity, roster=roster, policy=policy, ledger=ledger,
            randomness=randomness, seal_key=seal_key,
        )  # fmt: skip
        state = _open_state(plan, data, seal_key)
        acts = len(ledger.entries(identity.public_key, plan.context))
        if acts != _STATES[type(state).__name__][1]:
            raise StaleState(
                f"this state is after {_STATES[type(state).__name__][1]} acts and the ledger has "
                f"seen {acts}: continuing could say two different things"
            )
        participant._state = state
        if isinstance(state, Answered):
            participant._over = "it has answered"
        return participant

    # ------------------------------------------------------------------ inside

    def _act(
        self, act: Act, request: bytes, state: State, message: bytes
    ) -> list[ParticipantOutput]:
        """Ledger first, then the new state, then the message (C32)."""
        sealed = b""
        if self._seal_key is not None:
            sealed = _seal(self.plan, state, self._seal_key, self._randomness)
        entry = Entry(act, request, message, sealed)
        self._ledger.commit(self._me.identity.public_key, self.plan.context, entry)
        self._state = state
        return [Persist(act.name.lower(), sealed), Send(message)]

    def _answered_before(self, parsed: Downlink, request: bytes) -> list[ParticipantOutput] | None:
        """The same request gets the same bytes; another one for that step is refused (C35)."""
        act = _ACT_FOR[type(parsed)]
        entries = self._ledger.entries(self._me.identity.public_key, self.plan.context)
        if act is Act.UPLOAD_BEGUN and isinstance(self._state, Agreed):
            asked_before = self._state.request
            answer: list[ParticipantOutput] = []
        elif act < len(entries):
            asked_before = entries[act].request
            answer = [Send(entries[act].message)]
        else:
            return None
        if asked_before == request:
            return answer
        raise FaultyCoordinator(
            f"a second, different {type(parsed).__name__} for the same step",
            step=downlink_step(parsed),
        )

    def _message_of(self, act: Act) -> bytes:
        entries = self._ledger.entries(self._me.identity.public_key, self.plan.context)
        return entries[act].message

    def _record_leaves(self, first: int, hashes: list[bytes]) -> None:
        try:
            self._ledger.record_leaves(
                self._me.identity.public_key, self.plan.context, first, hashes
            )
        except StaleState as error:
            raise self._abandon(str(error)) from None

    def _new_upload(self, state: Uploading, vector: Values) -> Upload:
        plan, protection = self.plan, state.agreed.protection
        protector = scheme_of(plan).protector(plan, self._me.index, protection)
        return Upload(plan, vector, state.weight, state.rounding, protector)

    def _running_upload(self) -> Upload:
        self._require_live()
        if self._upload is None or not isinstance(self._state, Uploading):
            raise UsageError("upload() comes after submit() and before finish_upload()")
        return self._upload

    def _submitted(self) -> Upload:
        if self._upload is None:
            raise UsageError("nothing has been submitted in this process")
        return self._upload

    def _require_live(self) -> None:
        if self._over is not None:
            raise UsageError(f"the round is over for this participant: {self._over}")
        if self._state is None:
            raise UsageError("call start() first")

    def _abandon(self, reason: str) -> StaleState:
        """Two uploads under one mask must never exist: drop the secrets (C34)."""
        self._close(reason)
        return StaleState(f"the round is abandoned: {reason}")

    def _abort(self, error: RoundAborted) -> list[ParticipantOutput]:
        self._close(str(error))
        return [Aborted(error)]

    def _close(self, reason: str) -> None:
        self._ledger.close(self._me.identity.public_key, self.plan.context)
        self._over = reason
        if not isinstance(self._state, Answered):
            self._state = None if self._state is None else Answered(bytes(32))


_ACT_FOR: dict[type[Downlink], Act] = {
    KeyDirectory: Act.DEALT,
    ShareDelivery: Act.ACKNOWLEDGED,
    AgreedView: Act.UPLOAD_BEGUN,
    SurvivorSet: Act.SIGNED_SURVIVORS,
    Quorum: Act.ANSWERED,
}


def _myself(plan: RoundPlan, identity: Identity, roster: Roster) -> Self:
    try:
        setting = Setting(plan, roster)
    except ConfigError as error:
        raise PolicyRefused("roster_digest", str(error)) from None
    index = plan.index(identity.tenant)
    if index is None:
        raise PolicyRefused("cohort", f"{identity.tenant!r} is not in the cohort")
    if roster[identity.tenant].public_key != identity.public_key:
        raise ConfigError(
            f"the roster has another public key for {identity.tenant!r}; enrol this identity again"
        )
    return Self(setting, identity, index)


def _leaf_at(plan: RoundPlan, offset: int) -> tuple[int, int]:
    """The leaf that holds byte `offset`, and how far into it the byte is."""
    place = 0
    for number, leaf in enumerate(leaf_places(plan)):
        if offset < place + leaf.size:
            return number, offset - place
        place += leaf.size
    return len(leaf_places(plan)), 0


def _seal(plan: RoundPlan, state: State, key: SealKey, randomness: Randomness) -> bytes:
    """AES-256-GCM under the round's own key, bound to the round."""
    nonce, name = randomness(_NONCE_BYTES), type(state).__name__
    sealed = AESGCM(key.expose()).encrypt(nonce, encode(state), plan.context + name.encode())
    return Writer().tag("sealed state").text(name).fixed(nonce, _NONCE_BYTES).blob(sealed).finish()


def _open_state(plan: RoundPlan, data: bytes, key: SealKey) -> State:
    reader = Reader(data, "sealed state")
    reader.tag("sealed state")
    name, nonce = reader.text(), reader.fixed(_NONCE_BYTES)
    sealed = reader.blob()
    reader.end()
    if name not in _STATES or len(sealed) < TAG_BYTES:
        raise reader.error("unknown kind of state")
    try:
        plain = AESGCM(key.expose()).decrypt(nonce, sealed, plan.context + name.encode())
    except InvalidTag:
        raise reader.error("it was sealed for another round or under another key") from None
    kind: type[State] = _STATES[name][0]
    return decode(kind, plain)
