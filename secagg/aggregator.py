"""The aggregator of one round: collects, checks, bundles, adds up, and opens the sum once.

It is trusted for liveness alone. It holds no key: what it sends are the participants' own signed
records. Each step ends when everybody it waits for has answered, or at its deadline; whoever was
silent is a dropout. U1, U2 and U3 are handed to the host as `Persist` before they are announced,
so that an honest restart cannot announce another one.

Memory is one accumulator of the vector's length plus O(leaf), and until step 2 everybody's sealed
shares (in scheme `ckks` some 32 kB for each dealer and holder); uploads wait in the host's `Spool`
until root, length and signature are verified.

What a `Result` does not imply: that anybody but this process knows it is right. Participants who
want to know recompute it from the transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from secagg import checks, merkle, suite
from secagg.checks import Agreement, Directory, Setting, View
from secagg.cover import minimum_cover
from secagg.edges import Edges, opening_pairs
from secagg.errors import (
    FaultyParticipant,
    FaultyParticipantOrCoordinator,
    MalformedMessage,
    ProtocolError,
    RoundAborted,
    SecaggError,
    Step,
    TooFewSurvivors,
    UsageError,
)
from secagg.identity import Roster, sha256
from secagg.intake import Accumulator, Each, Incoming
from secagg.messages import (
    BODIES,
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Dealing,
    DeliveredLeaf,
    Downlink,
    KeyDirectory,
    Leaf,
    LeafOutline,
    PadBox,
    PadBoxes,
    Quorum,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
    decode_message,
    share_delivery_parts,
)
from secagg.outputs import Aborted, AggregatorOutput, Dispatch, Excluded, Finished, Persist
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.result import Result
from secagg.scheme import Opener, Opening, SealedPad, leaf_places, scheme_of, upload_bytes
from secagg.secret import SeedShare, Share
from secagg.shamir import parse_share
from secagg.spool import Spool
from secagg.transcript import TranscriptWriter

_UPLOAD = Step.MASKED_INPUT


class Aggregator:
    """One round at the aggregator. `now` is any clock in seconds that does not go back.

    `past_disputes` counts each tenant's unmet share deliveries in earlier rounds; they break ties
    when one of two disputing tenants has to leave. `each` is `map`; with a thread pool's `map` the
    masks of dropouts, of which there may be many, are taken off in parallel.
    """

    def __init__(
        self,
        plan: RoundPlan,
        roster: Roster,
        *,
        spool: Spool,
        past_disputes: Mapping[str, int] | None = None,
        each: Each = map,
    ) -> None:
        self.plan = plan
        self.step = Step.ADVERTISE_KEYS
        self.deadline = float("inf")
        self.result: Result | None = None
        self.disputes: dict[str, int] = dict(past_disputes or {})
        self._setting = Setting(plan, roster)
        self._scheme = scheme_of(plan)
        self._spool = spool
        self._each = each
        self._expelled: set[int] = set()
        self._over = False
        self._started = False
        self._waiting: set[int] = set(range(plan.n))
        self._messages: dict[tuple[str, int], Signed] = {}
        self._received: dict[tuple[str, int], bytes] = {}
        self._incoming: dict[int, Incoming] = {}
        self._shares: dict[int, dict[int, Share]] = {}
        self._key_sums: dict[int, bytes] = {}
        self._opener: Opener | None = None
        self._sum = Accumulator(plan)
        self._transcript = TranscriptWriter(plan, roster)
        self._public_keys: set[bytes] = set()
        self._directory_message = KeyDirectory(())
        self._directory = Directory({}, b"")
        self._bodies: dict[int, ShareKeysBody] = {}
        self._leaves: dict[int, tuple[Leaf, ...]] = {}
        self._dealings: dict[int, Dealing] = {}
        self._dealings_digest = b""
        self._outlines: dict[int, dict[int, LeafOutline]] = {}
        self._boxes: dict[tuple[int, int], SealedPad] = {}
        self._view = View(b"", Edges({}))
        self._survivors = Agreement((), Survivors(bytes(32), bytes(32)))

    @property
    def transcript(self) -> bytes:
        """The hash-chained signed messages so far (see `transcript.py`)."""
        return self._transcript.finish()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Tenants that the running step waits for, with those that have answered already."""
        return tuple(self.plan.cohort[index] for index in sorted(self._waiting))

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Tenants that the running step waits for and that have not answered it."""
        label = _LAST_LABEL[self.step]
        return tuple(
            name for name in self.waiting if (label, self.plan.index(name)) not in self._messages
        )

    @property
    def view(self) -> bytes:
        """The agreed view's digest; empty before step 3."""
        return self._view.digest

    # ------------------------------------------------------------------ what the host calls

    def start(self, now: float) -> list[AggregatorOutput]:
        """Open step 0. The host offers `plan.encode()` to every member of the cohort."""
        if self._started:
            raise UsageError("this round was started before")
        self._started = True
        self._open_step(Step.ADVERTISE_KEYS, self._waiting, now)
        return []

    def receive(self, sender: str, message: bytes, now: float) -> list[AggregatorOutput]:
        """Take a message of `sender`, the tenant id that the transport authenticated.

        Raises:
            ProtocolError: refused; this round is as it was before.
            FaultyParticipant: refused, and `sender` is proven to have signed two messages for one
                step. (Wrong shares are proof as well: they come back as `Excluded` with evidence,
                and the round goes on with the others'.)
        """
        parsed = decode_message(message)
        if self.result is not None:
            return []  # an answer that came after enough others had come
        self._require_live()
        if not isinstance(parsed, Signed | ShareKeys):
            raise MalformedMessage("this message is for participants")
        signed = parsed.body if isinstance(parsed, ShareKeys) else parsed
        self._check_sender(sender, signed)
        received = sha256(message)
        if self._is_repeated(signed, received):
            return []
        handler = self._handlers.get(signed.label)
        if handler is None or (signed.label == ShareKeysBody.LABEL) != isinstance(
            parsed, ShareKeys
        ):
            raise MalformedMessage(f"{signed.label[:32]!r} is no message of a participant")
        step = BODIES[signed.label].STEP
        if step is not self.step or signed.sender not in self._waiting:
            raise ProtocolError(
                f"{signed.label} of {sender!r} comes in {self.step.label}, which does not wait for "
                "it: it is late, early, or its sender has left the round",
                step=step,
            )
        try:
            outputs = handler(self, parsed)
        except OSError as error:
            # Part of the upload may be in the sum already: it cannot be told from the rest.
            return self._abort(RoundAborted(f"the spool failed: {error}", step=self.step))
        self._messages[signed.label, signed.sender] = signed
        self._received[signed.label, signed.sender] = received
        return [*outputs, *self._close_if_complete(now)]

    def absorb(self, sender: str, offset: int, piece: bytes | memoryview) -> int:
        """Take upload bytes at `offset`, which must be where the upload stands; returns where then.

        Raises:
            ProtocolError: no upload announced, another offset, too long, or stray bits.
        """
        incoming = self._running_upload(sender)
        if offset != incoming.received:
            raise ProtocolError(
                f"upload of {sender!r}: offset {offset} given, {incoming.received} expected",
                step=_UPLOAD,
            )
        pieces = incoming.check(piece)
        self._spool.append(sender, piece)
        incoming.take(pieces)
        return incoming.received

    def committed(self, sender: str) -> int:
        """How many bytes of this tenant's upload have been taken."""
        return self._running_upload(sender).received

    def upload_root(self, sender: str) -> bytes:
        """The Merkle root over the leaves of this tenant's upload that have been taken whole."""
        return merkle.root(self._running_upload(sender).hashes)

    def on_deadline(self, now: float) -> list[AggregatorOutput]:
        """Close the running step if its deadline has passed."""
        if self._over or not self._started or now < self.deadline:
            return []
        silent = [
            Excluded(name, self.step, "no answer before the deadline") for name in self.unanswered
        ]
        self._waiting.clear()
        return [*silent, *self._close_if_complete(now)]

    def on_silence(self, participant: str, now: float) -> list[AggregatorOutput]:
        """The host knows that this tenant is gone (its lease ended): do not wait for it."""
        index = self.plan.index(participant)
        if self._over or index is None or index not in self._waiting:
            return []
        self._waiting.discard(index)
        return [
            Excluded(participant, self.step, "its lease ended"),
            *self._close_if_complete(now),
        ]

    def abort(self, reason: str) -> list[AggregatorOutput]:
        """End the round by decision of the operator."""
        if self._over:
            return []
        return self._abort(RoundAborted(f"{self.step.label}: {reason}", step=self.step))

    # ------------------------------------------------------------------ one message of each type

    def _on_advertise_keys(self, signed: Signed) -> list[AggregatorOutput]:
        body = checks.verify(self._setting, signed, AdvertiseKeys)
        suite.check_public_keys(self.plan.suite, body, self._scheme.has_mask_keys)
        keys = set(checks.public_halves(body))
        if keys & self._public_keys:  # C06; refused here, it costs its sender and not the round
            raise ProtocolError("another participant advertises this key", step=body.STEP)
        self._public_keys |= keys
        return []

    def _on_share_keys(self, message: ShareKeys) -> list[AggregatorOutput]:
        dealer = message.body.sender
        dealing = checks.read_share_keys(self._setting, self._directory, message)
        self._bodies[dealer] = dealing.body.read(ShareKeysBody)
        self._leaves[dealer] = message.leaves
        self._dealings[dealer] = dealing
        return []

    def _on_acknowledge(self, signed: Signed) -> list[AggregatorOutput]:
        body = checks.verify(self._setting, signed, Acknowledge)
        if body.directory_digest != self._directory.digest:
            raise ProtocolError("acknowledges another U1 than the announced one", step=body.STEP)
        if body.dealings_digest != self._dealings_digest:
            raise ProtocolError("acknowledges other dealings than the announced", step=body.STEP)
        if list(body.refused) != sorted(set(body.refused)) or not all(
            dealer in self._bodies and signed.sender in self._bodies[dealer].holders
            for dealer in body.refused
        ):
            raise ProtocolError("it refuses what was not dealt to it", step=body.STEP)
        return []

    def _on_upload_header(self, signed: Signed) -> list[AggregatorOutput]:
        header = checks.verify(self._setting, signed, UploadHeader)
        if header.view != self._view.digest:  # C16
            raise ProtocolError("the upload is under another view", step=_UPLOAD)
        size = upload_bytes(self.plan)
        if header.length != size:
            raise ProtocolError(
                f"the upload announces {header.length} bytes, the plan has {size}", step=_UPLOAD
            )
        self._incoming[signed.sender] = Incoming(leaf_places(self.plan))
        return []

    def _on_upload_commitment(self, signed: Signed) -> list[AggregatorOutput]:
        commitment = checks.verify(self._setting, signed, UploadCommitment)
        size = upload_bytes(self.plan)
        checks.check_commitment(self._view.digest, commitment, size, signed.sender)
        incoming = self._incoming.get(signed.sender)
        received = 0 if incoming is None else incoming.received
        if incoming is None or received != size:
            raise ProtocolError(f"{received} of {size} bytes have arrived", step=_UPLOAD)
        if merkle.root(incoming.hashes) != commitment.root:  # C17
            raise ProtocolError("the upload's bytes are not those committed to", step=_UPLOAD)
        name, sizes = self.plan.cohort[signed.sender], [p.size for p in leaf_places(self.plan)]
        del self._incoming[signed.sender]
        self._waiting.discard(signed.sender)
        try:
            self._sum.add(lambda: self._spool.read(name, sizes))
        except MalformedMessage as error:  # C44: it signed the root over these very bytes
            self._expelled.add(signed.sender)
            self._spool.discard(name)
            return [Excluded(name, _UPLOAD, f"faulty: {error}", (signed.digest,))]
        return []

    def _on_consistency_check(self, signed: Signed) -> list[AggregatorOutput]:
        if checks.verify(self._setting, signed, Survivors) != self._survivors.body:
            raise ProtocolError("signs another U3 than the announced one", step=Survivors.STEP)
        return []

    def _on_unmask(self, signed: Signed) -> list[AggregatorOutput]:
        body = checks.verify(self._setting, signed, Unmask)
        try:
            shares = self._checked_answers(signed, body)
        except FaultyParticipant as error:
            self._expelled.add(signed.sender)
            return [Excluded(error.participant, Step.UNMASK, str(error), error.evidence)]
        for dealer, share in shares.items():
            self._shares.setdefault(dealer, {})[signed.sender] = share
        if body.key_sum:
            self._key_sums[signed.sender] = body.key_sum
        return []

    _handlers: ClassVar[Mapping[str, Callable[..., list[AggregatorOutput]]]] = {
        AdvertiseKeys.LABEL: _on_advertise_keys,
        ShareKeysBody.LABEL: _on_share_keys,
        Acknowledge.LABEL: _on_acknowledge,
        UploadHeader.LABEL: _on_upload_header,
        UploadCommitment.LABEL: _on_upload_commitment,
        Survivors.LABEL: _on_consistency_check,
        Unmask.LABEL: _on_unmask,
    }

    # ------------------------------------------------------------------ the ends of steps

    def _close_if_complete(self, now: float) -> list[AggregatorOutput]:
        """Close the step if nothing more is needed, and every following one that is empty."""
        label = _LAST_LABEL[self.step]
        complete = all((label, index) in self._messages for index in self._waiting)
        if self._over or not (complete or self._can_open()):
            return []
        try:
            return self._closers[self.step](self, now)
        except TooFewSurvivors as error:
            return self._abort(error)
        except ProtocolError as error:
            return self._abort(error)

    def _close_advertise_keys(self, now: float) -> list[AggregatorOutput]:
        keys = tuple(self._signed(AdvertiseKeys.LABEL))
        self._require_enough(len(keys))
        self._require_committee({signed.sender for signed in keys})
        directory = KeyDirectory(keys)
        self._directory_message = directory
        self._directory = checks.known_directory(self._setting, directory)
        return self._announce("U1", directory, Step.SHARE_KEYS, self._directory.keys, now)

    def _close_share_keys(self, now: float) -> list[AggregatorOutput]:
        dealers = sorted(self._dealings)
        self._require_enough(len(dealers))
        self._require_committee(set(dealers))
        self._transcript.append(*(encode(self._dealings[dealer]) for dealer in dealers))
        bodies = tuple(self._dealings[dealer].body for dealer in dealers)
        self._dealings_digest = checks.dealings_digest(self._setting, bodies)
        dispatches = self._deliveries(dealers, bodies)
        self._outlines = {dealer: self._dealings[dealer].by_holder() for dealer in dealers}
        self._boxes = {
            (dealer, leaf.holder): SealedPad(leaf.pad_box, leaf.pad_commitment)
            for dealer, leaves in self._leaves.items()
            for leaf in leaves
            if leaf.pad_box
        }
        self._leaves.clear()  # the sealed bundles are delivered; only pads may be needed again
        self._open_step(Step.ACKNOWLEDGE, dealers, now)
        return dispatches

    def _close_acknowledge(self, now: float) -> list[AggregatorOutput]:
        records = self._signed(Acknowledge.LABEL)
        self._require_committee({signed.sender for signed in records})
        out = self._cover({signed.sender: signed.read(Acknowledge) for signed in records})
        edges = Edges.of(
            {dealer: body.holders for dealer, body in self._bodies.items()},
            [signed.sender for signed in records if signed.sender not in out],
        )
        if not self.plan.complete:  # there the members are the holders, and their number decides
            # Who has too few holders left could not be opened: its place is lost, the round is not.
            edges = edges.without_too_few(self.plan.share_threshold)
        self._require_enough(len(edges.holders))
        agreed = AgreedView(tuple(one for one in records if one.sender in edges.holders))
        bodies = {dealer: dealing.body for dealer, dealing in sorted(self._dealings.items())}
        self._view = checks.read_agreed_view(
            self._setting, self._directory_message, self._directory.digest, bodies, agreed
        )
        excluded = [
            Excluded(self.plan.cohort[one.sender], Step.ACKNOWLEDGE, "an unmet share delivery")
            for one in records
            if one.sender not in edges.holders
        ]
        return [*excluded, *self._announce("U2", agreed, _UPLOAD, edges.holders, now)]

    def _close_masked_input(self, now: float) -> list[AggregatorOutput]:
        for index in self._incoming:
            self._spool.discard(self.plan.cohort[index])
        self._incoming.clear()
        commitments = tuple(
            one for one in self._signed(UploadCommitment.LABEL) if one.sender not in self._expelled
        )
        self._require_enough(len(commitments))
        survivors = SurvivorSet(commitments)
        members = [signed.sender for signed in commitments]
        fewest = self._view.edges.fewest_holders(frozenset(members))
        if fewest < self.plan.share_threshold:
            raise TooFewSurvivors(fewest, self.plan.share_threshold, step=self.step)
        self._survivors = checks.read_survivors(
            self._setting, self._view, survivors, upload_bytes(self.plan)
        )
        return self._announce("U3", survivors, Step.CONSISTENCY_CHECK, members, now)

    def _close_consistency_check(self, now: float) -> list[AggregatorOutput]:
        signatures = tuple(self._signed(Survivors.LABEL))
        need = max(self.plan.quorum, self.plan.share_threshold)
        if len(signatures) < need:
            raise TooFewSurvivors(len(signatures), need, step=self.step)
        fewest = self._view.edges.fewest_holders(frozenset(one.sender for one in signatures))
        if fewest < self.plan.share_threshold:
            raise TooFewSurvivors(fewest, self.plan.share_threshold, step=self.step)
        quorum = Quorum(signatures[: self.plan.quorum])  # more would only be more to verify
        signers = [signed.sender for signed in signatures]
        return self._announce("quorum", quorum, Step.UNMASK, signers, now)

    def _close_unmask(self, now: float) -> list[AggregatorOutput]:
        if self._released < self.plan.share_threshold:
            raise TooFewSurvivors(self._released, self.plan.share_threshold, step=Step.UNMASK)
        if not self._can_open():
            raise FaultyParticipantOrCoordinator(
                f"{self._released} sums of shares do not open the sum: a dealer, an upload or more "
                "answers than can be corrected are wrong; the sum is not used",
                step=Step.UNMASK,
            )
        wrong = () if self._opener is None else self._opener.left_out
        self._expelled |= set(wrong)
        for index in wrong:
            del self._key_sums[index]
        # With fewer that agree, f colluders could have chosen whose right sum looks wrong.
        certain = len(self._key_sums) >= self.plan.share_threshold + self.plan.max_colluders
        excluded = [
            Excluded(self.plan.cohort[index], Step.UNMASK, "its sum of shares is not the others'")
            for index in wrong
            if certain
        ]
        answers = [s for s in self._signed(Unmask.LABEL) if s.sender not in self._expelled]
        self._transcript.append(*map(encode, answers))
        self.result = self._open()
        self._over, self.deadline = True, float("inf")
        return [*excluded, Finished(self.result)]

    _closers: ClassVar[Mapping[Step, Callable[..., list[AggregatorOutput]]]] = {
        Step.ADVERTISE_KEYS: _close_advertise_keys,
        Step.SHARE_KEYS: _close_share_keys,
        Step.ACKNOWLEDGE: _close_acknowledge,
        Step.MASKED_INPUT: _close_masked_input,
        Step.CONSISTENCY_CHECK: _close_consistency_check,
        Step.UNMASK: _close_unmask,
    }

    # ------------------------------------------------------------------ inside

    def _open_step(self, step: Step, waiting: Iterable[int], now: float) -> None:
        self.step = step
        self._waiting = set(waiting)
        self.deadline = now + self.plan.deadlines.steps[step] / 1000

    def _announce(
        self, name: str, message: Downlink, step: Step, to: Iterable[int], now: float
    ) -> list[AggregatorOutput]:
        """Persist, then tell everybody who stays, and open the next step for them."""
        data, members = encode(message), sorted(to)
        self._transcript.append(data)
        self._open_step(step, members, now)
        return [
            Persist(name, data),
            *(Dispatch(self.plan.cohort[member], (data,)) for member in members),
        ]

    def _abort(self, error: SecaggError) -> list[AggregatorOutput]:
        self._over, self.deadline = True, float("inf")
        self._forget_shares()
        return [Aborted(error)]

    def _require_enough(self, have: int) -> None:
        if have < self.plan.least:
            raise TooFewSurvivors(have, self.plan.least, step=self.step)

    def _require_committee(self, members: set[int]) -> None:
        """Where all have the same holders, t of them are left: else the step that needs them is
        announced in vain."""
        holders = self.plan.same_holders
        if holders and len(members & set(holders)) < self.plan.share_threshold:
            raise TooFewSurvivors(
                len(members & set(holders)), self.plan.share_threshold, step=self.step
            )

    def _require_live(self) -> None:
        if self._over or not self._started:
            raise ProtocolError("the round is over" if self._over else "the round has not begun")

    def _check_sender(self, sender: str, signed: Signed) -> None:
        """Whoever the transport authenticated speaks in its own name (C02)."""
        if self.plan.index(sender) is None:
            raise ProtocolError(f"{sender!r} is not in the cohort of this round")
        if self.plan.index(sender) != signed.sender:
            raise ProtocolError(f"{sender!r} sent a message in another participant's name")

    def _is_repeated(self, signed: Signed, received: bytes) -> bool:
        """The same again is nothing new; another signed one proves its sender faulty (C35)."""
        first = self._messages.get((signed.label, signed.sender))
        if first is None:
            return False
        if self._received[signed.label, signed.sender] == received:
            return True
        checks.verify(self._setting, signed, BODIES[signed.label])
        if first == signed:  # whoever carried the leaves may have changed them: no proof
            raise MalformedMessage(f"{signed.label} comes again with other leaves", step=self.step)
        raise FaultyParticipant(
            self.plan.cohort[signed.sender],
            f"it signed two different {signed.label} messages in one round",
            step=self.step,
            evidence=(first.digest, signed.digest),
        )

    def _signed(self, label: str) -> list[Signed]:
        """Accepted signed records with this label, in index order."""
        found = [(sender, one) for (name, sender), one in self._messages.items() if name == label]
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def _deliveries(self, dealers: list[int], bodies: tuple[Signed, ...]) -> list[AggregatorOutput]:
        """To each holder every signed body, and its own leaves with their paths."""
        delivered: dict[int, list[DeliveredLeaf]] = {holder: [] for holder in dealers}
        for dealer in dealers:
            outlines = self._dealings[dealer].leaves
            paths = merkle.paths([checks.leaf_digest(outline) for outline in outlines])
            for leaf, path in zip(self._leaves[dealer], paths, strict=True):
                if leaf.holder != dealer and leaf.holder in delivered:
                    delivered[leaf.holder].append(DeliveredLeaf(dealer, leaf, path))
        return [
            Dispatch(self.plan.cohort[holder], parts)
            for holder, parts in share_delivery_parts(bodies, delivered)
        ]

    def _cover(self, acknowledgements: Mapping[int, Acknowledge]) -> set[int]:
        """The smallest set that meets every refused or missing (dealer, holder) pair."""
        disputes = {
            (dealer, holder)
            for holder, body in acknowledgements.items()
            for dealer in body.refused
            if dealer in acknowledgements
        }
        for tenant in {self.plan.cohort[index] for pair in disputes for index in pair}:
            self.disputes[tenant] = self.disputes.get(tenant, 0) + 1
        complaints = [holder for _, holder in disputes]

        def weight(index: int) -> tuple[int, int]:
            return self.disputes.get(self.plan.cohort[index], 0), complaints.count(index)

        return minimum_cover(disputes, weight)

    def _running_upload(self, sender: str) -> Incoming:
        index = self.plan.index(sender)
        incoming = None if index is None else self._incoming.get(index)
        waited_for = self.step is _UPLOAD and index in self._waiting and not self._over
        if incoming is None or not waited_for:
            raise ProtocolError(f"no upload of {sender!r} is announced and running", step=_UPLOAD)
        return incoming

    def _checked_answers(self, signed: Signed, body: Unmask) -> dict[int, Share]:
        """The shares of one answer, which are what the dealers committed to (C25)."""
        try:
            checks.check_answers(
                self._setting, self._view, self._survivors, self._outlines, signed.sender, body
            )
        except ProtocolError as error:
            name = self.plan.cohort[signed.sender]
            raise FaultyParticipant(
                name, str(error), step=Step.UNMASK, evidence=(signed.digest,)
            ) from None
        # C36: an honest holder would have refused a share that is none.
        return {one.dealer: parse_share(one.share, SeedShare) for one in body.answers}

    @property
    def _released(self) -> int:
        """How many valid shares there are of the member of U2 of which there are fewest."""
        return self._scheme.released(self._view.members, self._shares, self._key_sums)

    def _can_open(self) -> bool:
        """t valid shares of every member of U2 are there; or t sums of shares, and they are right.

        That sums are right shows when the first leaf opens with them (C45): as long as it does not,
        more of them may tell which are wrong.
        """
        if self.step is not Step.UNMASK or self._released < self.plan.share_threshold:
            return False
        if self._scheme.answers_are_proven:
            return True
        survivors = len(self._survivors.indices)
        candidates = self._scheme.candidates(self.plan, self._opening())
        self._opener = next((one for one in candidates if self._sum.opens(one, survivors)), None)
        return self._opener is not None

    def _opening(self) -> Opening:
        survivors = self._survivors.indices
        pairs = opening_pairs(self._view.edges, survivors)
        return Opening(
            keys=self._directory.keys,
            commitments={d: body.secret_commitment for d, body in self._bodies.items()},
            edges=self._view.edges,
            survivors=survivors,
            shares=self._shares,
            sums=self._key_sums,
            boxes={pair: self._boxes[pair] for pair in pairs if pair in self._boxes},
        )

    def _open(self) -> Result:
        opening = self._opening()
        boxes = tuple(PadBox(*pair, pad.box) for pair, pad in opening.boxes.items())
        self._transcript.append(encode(PadBoxes(boxes)))
        try:
            opener = self._opener or next(self._scheme.candidates(self.plan, opening))
        except FaultyParticipant as error:
            error.evidence = self._evidence_against(error.participant)
            raise
        self._forget_shares()
        names = tuple(self.plan.cohort[index] for index in sorted(opening.survivors))
        return self._sum.open(opener, names, self._each)

    def _forget_shares(self) -> None:
        self._shares.clear()
        self._key_sums.clear()
        self._opener = None

    def _evidence_against(self, dealer: str) -> tuple[bytes, ...]:
        """A dealing that does not open: what it signed, and the answers that show it (C26, C39)."""
        index = self.plan.index(dealer)
        return tuple(
            signed.digest
            for (label, sender), signed in self._messages.items()
            if label == Unmask.LABEL
            or (sender == index and label in (ShareKeysBody.LABEL, Acknowledge.LABEL))
        )


_LAST_LABEL = {
    Step.ADVERTISE_KEYS: AdvertiseKeys.LABEL,
    Step.SHARE_KEYS: ShareKeysBody.LABEL,
    Step.ACKNOWLEDGE: Acknowledge.LABEL,
    Step.MASKED_INPUT: UploadCommitment.LABEL,
    Step.CONSISTENCY_CHECK: Survivors.LABEL,
    Step.UNMASK: Unmask.LABEL,
}
