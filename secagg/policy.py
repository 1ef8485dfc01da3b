"""What this participant is willing to take part in, whatever the coordinator proposes.

The plan comes from the other side of the trust boundary, so every clause is checked inside the
tenant's walls before any key is made (protocol.md, "The participant checks the plan against its
own policy"). A refusal names its clause; nothing has been sent by then (C28).
"""

from __future__ import annotations

from dataclasses import dataclass

from secagg.ckks.parameters import Packing, Security
from secagg.errors import PolicyRefused
from secagg.plan import (
    COMMITTEE_ABOVE,
    COMPLETE_UP_TO,
    MIN_SURVIVORS,
    RoundPlan,
    Scheme,
    Suite,
)

MAX_ROUND_JUMP = 1 << 32


@dataclass(frozen=True, slots=True)
class Policy:
    """The least and the most that a plan may ask of this participant.

    `roster_digest` pins the roster. `max_colluders` is how many other tenants may help a cheating
    coordinator without anything leaking (f); a plan that assumes fewer is refused.
    Cohorts of up to `complete_up_to` share on the complete graph; only larger ones may use a sparse
    graph, whose guarantee is weaker. There t follows from f and no longer from n, so that a small f
    would mean a handful of holders: f is at least the fraction `sparse_corrupt` of such a cohort.
    In scheme `ckks` a fraction `committee_corrupt` of those who may hold shares (the cohort, or all
    whom the roster names) must not be enough to open. `packings` and `securities` are its too: that
    a sum of "slots" tells no more than the sum rests on doubles, and "classical" allows more of Q.
    `suites` refuses a downgrade: add "x25519" to it only for peers that cannot do better.
    `model_digests` empty means that any model is allowed (then the model is not pinned).
    """

    roster_digest: bytes
    max_colluders: int = 1
    min_survivors: int = MIN_SURVIVORS
    min_cohort: int = 3
    min_threshold: int = 2
    schemes: tuple[Scheme, ...] = ("masking", "ckks")
    packings: tuple[Packing, ...] = ("coefficients",)
    securities: tuple[Security, ...] = ("quantum",)
    suites: tuple[Suite, ...] = ("x25519-mlkem768",)
    complete_up_to: int = COMPLETE_UP_TO
    sparse_corrupt: float = 0.1
    committee_corrupt: float = 1 / 3
    model_digests: frozenset[bytes] = frozenset()
    layout_digests: frozenset[bytes] = frozenset()
    max_clip: float = float("inf")
    max_weight: int = 1 << 40
    max_length: int = 1 << 36

    def check(self, plan: RoundPlan, tenant: str, last_round: int) -> None:
        """Refuse a plan that this policy does not allow. `last_round` is the ledger's highest.

        Raises:
            PolicyRefused: names the first clause that does not hold.
        """
        for clause, holds, reason in self._clauses(plan, tenant, last_round):
            if not holds:
                raise PolicyRefused(clause, reason)

    def _clauses(
        self, plan: RoundPlan, tenant: str, last_round: int
    ) -> tuple[tuple[str, bool, str], ...]:
        need = max(plan.max_colluders + 2, self.min_survivors)
        jump = plan.round_number - last_round
        return (
            (
                "roster_digest",
                plan.roster_digest == self.roster_digest,
                "another roster than the pinned one; accept the new roster first",
            ),
            ("cohort", plan.index(tenant) is not None, f"{tenant!r} is not in the cohort"),
            ("suites", plan.suite in self.suites, f"suite {plan.suite!r} is not allowed here"),
            ("schemes", plan.scheme in self.schemes, f"scheme {plan.scheme!r} is not allowed here"),
            (
                "max_colluders",
                plan.max_colluders >= self.max_colluders,
                f"it assumes {plan.max_colluders} colluders, this policy {self.max_colluders}",
            ),
            (
                "min_survivors",
                plan.min_survivors >= need,
                f"it opens over {plan.min_survivors} survivors, this policy needs {need}",
            ),
            (
                "min_cohort",
                plan.n >= self.min_cohort,
                f"a cohort of {plan.n} is below {self.min_cohort}",
            ),
            (
                "min_threshold",
                plan.share_threshold >= self.min_threshold,
                f"a threshold of {plan.share_threshold} is below {self.min_threshold}",
            ),
            (
                "complete_up_to",
                bool(plan.same_holders) or plan.n > self.complete_up_to,
                f"sparse graphs are for cohorts above {self.complete_up_to}, and this has {plan.n}",
            ),
            (
                "sparse_corrupt",
                bool(plan.same_holders) or plan.max_colluders >= int(self.sparse_corrupt * plan.n),
                f"a sparse graph has to stand {self.sparse_corrupt} of {plan.n} as colluders",
            ),
            *self._ckks_clauses(plan),
            (
                "model_digests",
                not self.model_digests or plan.model_digest in self.model_digests,
                "the model is none of the pinned ones",
            ),
            (
                "layout_digests",
                not self.layout_digests or plan.layout.digest in self.layout_digests,
                "the tensor layout is none of the pinned ones",
            ),
            (
                "max_clip",
                plan.quantiser.clip <= self.max_clip,
                f"a clip of {plan.quantiser.clip} is above {self.max_clip}",
            ),
            (
                "max_weight",
                plan.max_weight <= self.max_weight,
                f"a weight cap of {plan.max_weight} is above {self.max_weight}",
            ),
            (
                "max_length",
                plan.layout.size <= self.max_length,
                f"{plan.layout.size} coordinates are more than {self.max_length}",
            ),
            (
                "round_number",
                jump > 0,
                f"round {plan.round_number} is not after round {last_round}",
            ),
            (
                "round_jump",
                jump <= MAX_ROUND_JUMP,
                f"round {plan.round_number} jumps by more than 2^32",
            ),
        )

    def _ckks_clauses(self, plan: RoundPlan) -> tuple[tuple[str, bool, str], ...]:
        if plan.ckks is None:
            return ()
        # All whom the roster names, not those in the cohort: who proposes plans chooses cohorts.
        holders = plan.n if plan.n <= COMMITTEE_ABOVE else len(plan.committee)
        return (
            (
                "packings",
                plan.ckks.packing in self.packings,
                f"packing {plan.ckks.packing!r} is not allowed here",
            ),
            (
                "securities",
                plan.ckks.security in self.securities,
                f"parameters for {plan.ckks.security} security are not allowed here",
            ),
            (
                "committee_corrupt",
                plan.share_threshold > self.committee_corrupt * holders,
                f"{plan.share_threshold} of {holders} who may hold shares could open",
            ),
        )
