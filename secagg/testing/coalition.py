"""A coordinator that lies, with tenants that lie for it, against real participants.

A malicious coordinator has every message that honest tenants ever handed out, the only link to
each of them, and the keys of the tenants that collude with it. It can withhold, repeat, mix and
show different things to different tenants; it cannot sign for the honest.

    coalition = Coalition(members, plan, colluders=[3])
    marks = coalition.marks()                     # one process of each honest tenant
    coalition.tell(marks[0], coalition.directory([0, 1, 2, 3]))

`tell` says whether a message was accepted, and `witness` holds the tenants to what they may say.
What the coalition can compute in the end is `secagg.testing.knowledge`'s.

Not here: an aggregator. A coalition opens nothing and needs no order of steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from secagg import checks, merkle
from secagg import participant_steps as steps
from secagg.checks import Agreement, Setting, View
from secagg.errors import SecaggError
from secagg.identity import Identity
from secagg.ledger import Ledger
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Body,
    DeliveredLeaf,
    Downlink,
    KeyDirectory,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    UploadCommitment,
    UploadHeader,
    decode_message,
)
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.scheme import upload_bytes
from secagg.testing.cohorts import Cohort, make_tenants
from secagg.testing.faults import UPLOAD_CHUNK
from secagg.testing.invariants import InvariantBroken, Witness
from secagg.testing.network import piece_bytes
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant


class Colluder:
    """One colluding tenant: signs anything, advertises several keys, deals to any U1."""

    def __init__(self, setting: Setting, identity: Identity, index: int, seed: int) -> None:
        self.me = steps.Self(setting, identity, index)
        self._randomness = SeededRandomness(f"colluder {seed} {index} {setting.context.hex()}")
        self._keys: dict[int, steps.Advertised] = {}
        self._dealings: dict[bytes, ShareKeys] = {}

    def sign(self, body: Body) -> Signed:
        """Anything, in its own name."""
        return self.me.sign(body)

    def keys(self, variant: int = 0) -> Signed:
        """One of any number of key sets."""
        if variant not in self._keys:
            self._keys[variant], _ = steps.advertise_keys(self.me, self._randomness)
        return self._keys[variant].own

    def replace_dealing(self, directory: KeyDirectory, dealing: ShareKeys) -> None:
        """Deal so to this U1, from now on."""
        self._dealings[encode(directory)] = dealing

    def dealing(self, directory: KeyDirectory) -> ShareKeys:
        """Right shares for everybody in this U1, of the keys that it shows there."""
        name = encode(directory)
        if name not in self._dealings:
            state = next(one for one in self._keys.values() if one.own in directory.keys)
            _, self._dealings[name] = steps.share_keys(self.me, state, directory, self._randomness)
        return self._dealings[name]


@dataclass(slots=True)
class Mark:
    """One process of an honest tenant, and what it has been brought to accept."""

    index: int
    tenant: SimulatedTenant
    directory: KeyDirectory | None = None
    delivery: ShareDelivery | None = None
    view: View | None = None
    uploaded: bool = False
    survivors: Agreement | None = None
    answered: bool = False
    errors: list[SecaggError] = field(default_factory=list)
    past: list[Mark] = field(default_factory=list)
    """What it was when each of its states was exported."""


class Coalition:
    """See the module's docstring. `log` has every message that was accepted or refused."""

    def __init__(
        self,
        members: Cohort,
        plan: RoundPlan,
        colluders: Iterable[int] = (),
        *,
        seed: int = 0,
        ledgers: Mapping[str, Ledger] | None = None,
    ) -> None:
        self.plan = plan
        self.setting = Setting(plan, members.roster)
        self.colluders = {
            index: Colluder(self.setting, members.identity(plan.cohort[index]), index, seed)
            for index in sorted(colluders)
        }
        self.tenants = make_tenants(members, plan, seed=seed, ledgers=ledgers)
        self.witness = Witness(plan, [plan.cohort[index] for index in self.colluders])
        self.said: dict[str, dict[int, Signed]] = {}
        self.dealings: dict[int, ShareKeys] = {}
        self.views: dict[bytes, View] = {}
        self.agreements: dict[bytes, Agreement] = {}
        self._processes = 0
        self.log: list[bytes] = []

    @property
    def honest(self) -> tuple[int, ...]:
        """Who does not collude."""
        return tuple(i for i in range(self.plan.n) if i not in self.colluders)

    def marks(self) -> list[Mark]:
        """Offer the plan to every honest tenant; those that take part."""
        marks = [Mark(index, self.tenants[self.plan.cohort[index]]) for index in self.honest]
        return [mark for mark in marks if self.offer(mark)]

    # ------------------------------------------------------------------ talking to tenants

    def offer(self, mark: Mark) -> bool:
        """Offer the plan; whether the tenant joins."""
        try:
            messages = mark.tenant.offer(self.plan.encode())
        except SecaggError as error:
            mark.errors.append(error)
            return False
        self.hear(mark, messages)
        self._remember(mark)
        return True

    def tell(self, mark: Mark, message: Downlink | bytes) -> bool:
        """Send anything to one process; whether it was accepted."""
        data = message if isinstance(message, bytes) else encode(message)
        self.log.append(data)
        try:
            answer = mark.tenant.receive(data)
            parsed = decode_message(data)
        except SecaggError as error:
            mark.errors.append(error)
            return False
        self.note(mark, parsed)
        self.hear(mark, answer)
        self._remember(mark)
        return True

    def upload(self, mark: Mark, pieces: int | None = None) -> bool:
        """Let one process submit, and take so many pieces, or all and the signature."""
        size = piece_bytes(self.plan)
        try:
            self.hear(mark, mark.tenant.submit())
            self._remember(mark)
            offset = 0
            while pieces is None or pieces > 0:
                piece = mark.tenant.piece(offset, size)
                if not piece:
                    break
                self.witness.see(mark.tenant.name, UPLOAD_CHUNK, piece, offset)
                offset, pieces = offset + len(piece), None if pieces is None else pieces - 1
            if pieces is None:
                self.hear(mark, mark.tenant.finish_upload())
        except SecaggError as error:
            mark.errors.append(error)
            return False
        mark.uploaded = pieces is None
        self._remember(mark)
        return True

    def fork(self, mark: Mark, number: int) -> Mark | None:
        """Another process of this tenant from a state that it exported, old ones included.

        None if the tenant refuses to continue from it. The ledger is the same, the randomness not.
        """
        self._processes += 1
        randomness = SeededRandomness(f"process {self._processes} of {mark.tenant.name}")
        try:
            twin = mark.tenant.twin(number, randomness)
        except SecaggError as error:
            mark.errors.append(error)
            return None
        entries = twin.ledger.entries(twin.identity.public_key, self.plan.context)
        again = replace(mark.past[number], tenant=twin, errors=[], past=mark.past[: number + 1])
        self.hear(again, [entries[-1].message])
        return again

    def _remember(self, mark: Mark) -> None:
        mark.tenant.remember_state()
        mark.past.append(replace(mark, past=[]))

    def hear(self, mark: Mark, messages: Iterable[bytes]) -> None:
        """Take what an honest tenant said."""
        for data in messages:
            message = decode_message(data)
            signed = message.body if isinstance(message, ShareKeys) else message
            if not isinstance(signed, Signed):
                raise InvariantBroken(f"{mark.tenant.name} sent what is no participant's message")
            if isinstance(message, ShareKeys):
                self.dealings[mark.index] = message
            self.said.setdefault(signed.label, {})[mark.index] = signed
            self.witness.see(mark.tenant.name, signed.label, data)

    def note(self, mark: Mark, message: object) -> None:
        """Remember what a tenant was brought to accept.

        Raises:
            InvariantBroken: it accepted something before what has to come first.
        """
        match message:
            case KeyDirectory():
                mark.directory = message
            case ShareDelivery():
                mark.delivery = message
            case AgreedView() if mark.directory and mark.delivery:
                mark.view = self.read_view(mark.directory, mark.delivery, message)
                self.views[mark.view.digest] = mark.view
            case SurvivorSet() if mark.view:
                size = upload_bytes(self.plan)
                mark.survivors = checks.read_survivors(self.setting, mark.view, message, size)
                self.agreements[encode(mark.survivors.body)] = mark.survivors
            case Quorum() if mark.survivors:
                mark.answered = True
            case _:
                raise InvariantBroken(f"it took a {type(message).__name__} out of order")

    # ------------------------------------------------------------------ what can be bundled

    def directory(self, members: Iterable[int], variant: int = 0) -> KeyDirectory:
        """U1 of these, with one of the colluders' key sets."""
        keys = self.said.get(AdvertiseKeys.LABEL, {})
        return KeyDirectory(
            tuple(
                self.colluders[i].keys(variant) if i in self.colluders else keys[i]
                for i in sorted(members)
                if i in self.colluders or i in keys
            )
        )

    def delivery(
        self, mark: Mark, dealers: Iterable[int], missing: Collection[int] = ()
    ) -> ShareDelivery:
        """These dealers' bodies, and their leaves for this holder but for the missing ones."""
        dealings = {one: self.dealing(mark, one) for one in sorted(dealers)}
        found = {one: dealing for one, dealing in dealings.items() if dealing is not None}
        leaves = [
            delivered_leaf(dealer, dealing, mark.index)
            for dealer, dealing in found.items()
            if dealer != mark.index and dealer not in missing
        ]
        return ShareDelivery(
            tuple(dealing.body for dealing in found.values()),
            tuple(leaf for leaf in leaves if leaf is not None),
        )

    def agreed(self, mark: Mark, members: Iterable[int]) -> AgreedView:
        """U2 of these; colluders acknowledge whatever this holder was shown."""
        said = self.said.get(Acknowledge.LABEL, {})
        shown = Acknowledge(bytes(32), bytes(32), ())
        if mark.directory and mark.delivery:
            shown = Acknowledge(
                checks.read_directory(self.setting, mark.directory).digest,
                checks.dealings_digest(self.setting, mark.delivery.bodies),
                (),
            )
        return AgreedView(self._signed(members, said, shown))

    def survivors(self, mark: Mark, members: Iterable[int]) -> SurvivorSet:
        """U3 of these; colluders have committed under whatever view this tenant has."""
        said = self.said.get(UploadCommitment.LABEL, {})
        view = mark.view.digest if mark.view else bytes(32)
        forged = UploadCommitment(view, bytes(32), upload_bytes(self.plan))
        return SurvivorSet(self._signed(members, said, forged))

    def quorum(self, mark: Mark, signers: Iterable[int]) -> Quorum:
        """Signatures of these; colluders sign whatever this tenant signed."""
        said = self.said.get(Survivors.LABEL, {})
        forged = mark.survivors.body if mark.survivors else Survivors(bytes(32), bytes(32))
        return Quorum(self._signed(signers, said, forged))

    def read_view(
        self, directory: KeyDirectory, delivery: ShareDelivery, agreed: AgreedView
    ) -> View:
        """The view that follows from what a tenant accepted."""
        bodies = {signed.sender: signed for signed in delivery.bodies}
        digest = checks.read_directory(self.setting, directory).digest
        return checks.read_agreed_view(self.setting, directory, digest, bodies, agreed)

    def holders(self, dealer: int) -> tuple[int, ...]:
        """Who holds an honest dealer's shares; nobody before it has dealt."""
        dealing = self.dealings.get(dealer)
        return () if dealing is None else dealing.body.read(ShareKeysBody).holders

    def header_view(self, index: int) -> View | None:
        """The view under which an honest tenant announced its upload."""
        header = self.said.get(UploadHeader.LABEL, {}).get(index)
        return None if header is None else self.views[header.read(UploadHeader).view]

    def replace_dealing(self, mark: Mark, dealer: int, dealing: ShareKeys) -> None:
        """From now on a colluder's dealing for the U1 that this tenant accepted is this one."""
        self.colluders[dealer].replace_dealing(mark.directory or KeyDirectory(()), dealing)

    def dealing(self, mark: Mark, dealer: int) -> ShareKeys | None:
        """What a dealer dealt to the U1 that this tenant accepted, if it did."""
        if dealer not in self.colluders:
            return self.dealings.get(dealer)
        if mark.directory is None or dealer not in {one.sender for one in mark.directory.keys}:
            return None
        try:
            return self.colluders[dealer].dealing(mark.directory)
        except SecaggError:
            return None  # too few of those it drew are in this U1

    def _signed(
        self, members: Iterable[int], said: Mapping[int, Signed], forged: Body
    ) -> tuple[Signed, ...]:
        return tuple(
            self.colluders[i].sign(forged) if i in self.colluders else said[i]
            for i in sorted(members)
            if i in self.colluders or i in said
        )


def delivered_leaf(dealer: int, dealing: ShareKeys, holder: int) -> DeliveredLeaf | None:
    """One holder's leaf of a dealing with its path; None if it holds nothing of this dealer."""
    holders = [leaf.holder for leaf in dealing.leaves]
    if holder not in holders:
        return None
    place = holders.index(holder)
    path = merkle.path([checks.leaf_digest(leaf.outline) for leaf in dealing.leaves], place)
    return DeliveredLeaf(dealer, dealing.leaves[place], path)
