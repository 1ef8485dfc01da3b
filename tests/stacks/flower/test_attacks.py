"""A server that lists one tenant as a survivor and as a dropout, to get both of its secrets.

Masks come off with one of two secrets of a client: the seed of its own mask if it is counted, the
key of its pairwise masks if it is not. Whoever has both reads its update. Mounted here by the same
kind of deviating server on two sides: on Flower's SecAgg+, whose clients answer both questions,
and on this package's adapter, whose tenants answer neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import flwr.compat.common.recorddict_compat as compat
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server import LegacyContext, ServerConfig, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from secagg.errors import RoundAborted, Step
from secagg.messages import AgreedView, Quorum, Signed, SurvivorSet, decode_message
from secagg.records import encode
from secagg_embed.flower import SecureAggregation, Terms
from secagg_embed.flower.records import RECORD, read_replies, with_requests
from secagg_embed.flower.rounds import FlowerRound
from secagg_embed.wire import Declined, Deliver, Said, decode_request
from tests.stacks.flower.local import MODEL, NAMES, NODES, Federation, LocalGrid, arrays_of

VICTIM = "cyd"

# ---------------------------------------------------------------------------- Flower's SecAgg+

LENGTH, WEIGHT = 50, 7


def secret_update(node: int) -> np.ndarray:
    return np.random.default_rng(node).uniform(-1, 1, LENGTH).astype(np.float32)


class Client(NumPyClient):
    """Trains nothing: its update is its own."""

    def __init__(self, node: int) -> None:
        self.node = node

    def fit(self, parameters: object, config: object) -> tuple[list[np.ndarray], int, dict]:
        return [secret_update(self.node)], WEIGHT, {}


class BothLists(SecAggPlusWorkflow):
    """Asks each client for the shares of the victim as of an active and as of a dead one."""

    victim = NODES[VICTIM]
    found: np.ndarray | None = None

    def unmask_stage(self, grid: LocalGrid, context: LegacyContext, state: object) -> bool:
        asked = ConfigRecord(
            {
                Key.STAGE: Stage.UNMASK,
                Key.ACTIVE_NODE_ID_LIST: sorted(state.active_node_ids),
                Key.DEAD_NODE_ID_LIST: [self.victim],
            }
        )
        content = RecordDict({RECORD_KEY_CONFIGS: asked})
        others = sorted(state.active_node_ids - {self.victim})
        replies = grid.send_and_receive([Message(content, n, "train") for n in others])
        seeds, keys = [], []
        for reply in replies:
            said = reply.content[RECORD_KEY_CONFIGS]
            shares = list(zip(said[Key.NODE_ID_LIST], said[Key.SHARE_LIST], strict=True))
            seed, key = [share for node, share in shares if node == self.victim]
            seeds.append(seed)
            keys.append(key)
        self.found = self.unmasked(grid, state, combine_shares(seeds), combine_shares(keys))
        return True

    def unmasked(self, grid: LocalGrid, state: object, seed: bytes, key: bytes) -> np.ndarray:
        """The victim's update from its upload and its two secrets, by Flower's own functions."""
        vector = next(self.uploads(grid))
        shape = get_parameters_shape(vector)
        vector = parameters_subtraction(vector, pseudo_rand_gen(seed, state.mod_range, shape))
        for other in state.active_node_ids - {self.victim}:
            public = bytes_to_public_key(state.nid_to_publickeys[other][0])
            mask = pseudo_rand_gen(
                generate_shared_key(bytes_to_private_key(key), public), state.mod_range, shape
            )
            undo = parameters_subtraction if self.victim > other else parameters_addition
            vector = undo(vector, mask)
        weight, levels = factor_extract(parameters_mod(vector, state.mod_range))
        (update,) = dequantize(levels, state.clipping_range, state.quantization_range)
        return np.asarray(update * state.quantization_range / weight)

    def uploads(self, grid: LocalGrid) -> Iterator[list[np.ndarray]]:
        for reply in grid.replied:
            said = reply.content.get(RECORD_KEY_CONFIGS, {})
            if reply.metadata.src_node_id == self.victim and Key.MASKED_PARAMETERS in said:
                yield [bytes_to_ndarray(one) for one in said[Key.MASKED_PARAMETERS]]


def test_flowers_secagg_plus_gives_the_victims_update_to_a_server_that_lists_it_twice() -> None:
    def client_fn(context: Context) -> object:
        return Client(context.node_id).to_client()

    app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
    grid = LocalGrid(dict.fromkeys(NODES.values(), app), {node: {} for node in NODES.values()})
    clients = SimpleClientManager()
    for node in NODES.values():
        clients.register(GridClientProxy(node_id=node, grid=grid, run_id=1))
    context = LegacyContext(
        Context(1, 0, {}, RecordDict(), {}),
        config=ServerConfig(num_rounds=1),
        strategy=LegacyFedAvg(min_fit_clients=5, min_available_clients=5),
        client_manager=clients,
    )
    context.state[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([np.zeros(LENGTH, np.float32)]), keep_input=True
    )
    workflow = BothLists(1.0, 0.6)
    workflow(grid, context)
    truth = secret_update(NODES[VICTIM])
    assert np.abs(workflow.found - truth).max() < 1e-3  # the quantiser's step over the weight
    assert np.corrcoef(workflow.found, truth)[0, 1] > 0.999999


# ---------------------------------------------------------------------------- this adapter


class TwoFaced(FlowerRound):
    """Tells half of the tenants that the victim is a survivor, and the others that it dropped out;
    then claims a quorum, for each side, of whatever signatures it can get."""

    def letters(self) -> dict[int, RecordDict]:
        letters = super().letters()
        if self._step is Step.CONSISTENCY_CHECK:
            others = [node for node in letters if node != NODES[VICTIM]]
            for node in others[len(others) // 2 :]:
                letters[node] = without_victim(self, letters[node])
        return letters


class Twin(SecureAggregation):
    """The adapter's strategy with that round in it."""

    def _begin(self, *args: object) -> object:
        begun = super()._begin(*args)
        begun.round.__class__ = TwoFaced
        self.attacked = begun.round
        return begun


def without_victim(round_: FlowerRound, letter: RecordDict) -> RecordDict:
    """The letter that announces the survivors, as if the victim were none."""
    deliver = decode_request(letter[RECORD]["requests"][-1])
    assert isinstance(deliver, Deliver)
    told = decode_message(deliver.message)
    assert isinstance(told, SurvivorSet)
    victim = round_.coordinated.plan.index(VICTIM)
    kept = tuple(one for one in told.commitments if one.sender != victim)
    assert len(kept) == len(told.commitments) - 1
    lie = replace(deliver, message=encode(replace(told, commitments=kept)))
    return with_requests({}, [encode(lie)])


def said_by(grid: LocalGrid) -> Iterator[tuple[int, Signed]]:
    """Every signed message that left a tenant."""
    for reply in grid.replied:
        replies = read_replies(reply.content) if reply.has_content() else None
        for one in replies or ():
            match one.read():
                case Said(messages=messages, committed=committed):
                    for data in (*messages, *committed):
                        if isinstance(message := decode_message(data), Signed):
                            yield reply.metadata.src_node_id, message
                case _:
                    pass


def shares_that_left(grid: LocalGrid) -> list[int]:
    return [node for node, message in said_by(grid) if message.label == "unmask"]


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_the_same_server_gets_no_share_at_all(federation: Federation, scheme: str) -> None:
    grid = federation.grid()
    twin = Twin(
        FedAvg(), roster=federation.roster_file, run_config=grid.run_config, pace=grid.pace,
        terms=Terms(clip=1.0, max_weight=50, scheme=scheme),
    )  # fmt: skip
    with pytest.raises(RoundAborted, match=r"consistency_check: 3 participants are left"):
        twin.start(grid, arrays_of(MODEL), num_rounds=1)
    signed = [message for _, message in said_by(grid) if message.label == "consistency_check"]
    votes = {(message.sender, message.body) for message in signed}  # asked again, said again
    assert sorted(sender for sender, _ in votes) == list(range(len(NAMES)))  # one each, and
    assert len({body for _, body in votes}) == 2  # each side signed what it was told
    assert shares_that_left(grid) == []


def test_no_tenant_takes_a_quorum_of_both_sides_or_signs_a_second_set(
    federation: Federation,
) -> None:
    """After the tenants have signed, the server asks on: for either set of survivors, and with
    every signature that it has."""
    grid = federation.grid()
    strategy = federation.strategy(FedAvg(), grid)
    arrays = arrays_of(MODEL)
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    attacked = strategy._begun.round
    for reply in grid.send_and_receive(messages):
        attacked.absorb(reply.metadata.src_node_id, reply.content)
    attacked.close()
    honest = attacked.letters()
    lies = {node: without_victim(attacked, letter) for node, letter in honest.items()}
    sides = [node for node in honest if node != NODES[VICTIM]]
    first, second = sides[:2], sides[2:]
    ask(grid, {**{n: honest[n] for n in (*first, NODES[VICTIM])}, **{n: lies[n] for n in second}})
    votes = [message for _, message in said_by(grid) if message.label == "consistency_check"]
    assert len(votes) == len(NAMES)

    refusals = ask(grid, {**{n: lies[n] for n in first}, **{n: honest[n] for n in second}})
    assert all(isinstance(one, Declined) for one in refusals)
    context = attacked.coordinated.plan.context
    sets = {vote.body for vote in votes}
    assert len(sets) == 2
    for bodies in (*({one} for one in sets), sets):
        chosen = tuple(vote for vote in votes if vote.body in bodies)
        quorum = encode(Deliver(context, encode(Quorum(chosen))))
        refusals = ask(grid, {node: with_requests({}, [quorum]) for node in NODES.values()})
        assert all(isinstance(one, Declined) for one in refusals)
    assert shares_that_left(grid) == []


def ask(grid: LocalGrid, letters: dict[int, RecordDict]) -> list[Said | Declined]:
    replies = grid.send_and_receive([Message(c, n, "train") for n, c in letters.items()])
    return [read_replies(reply.content)[-1].read() for reply in replies]


def test_a_training_that_hides_in_an_evaluation_is_refused(federation: Federation) -> None:
    """The agreed view, sent to the evaluate function."""
    grid = federation.grid()
    strategy = federation.strategy(FedAvg(), grid)
    messages = list(strategy.configure_train(1, arrays_of(MODEL), ConfigRecord(), grid))
    deliver = decode_request(messages[0].content[RECORD]["requests"][-1])
    assert isinstance(decode_message(deliver.message), AgreedView)
    (reply,) = grid.send_and_receive(
        [Message(messages[0].content, messages[0].metadata.dst_node_id, "evaluate")]
    )
    (said,) = read_replies(reply.content)
    declined = said.read()
    assert isinstance(declined, Declined)
    assert "no training asks this tenant to train" in declined.reason
    assert not said.upload
