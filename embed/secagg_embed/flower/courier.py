"""One exchange over Flower's grid: a letter to each node, and each reply taken as it arrives.

Flower's `send_and_receive` returns when the last reply is there, and asks for replies every three
seconds. Here a reply is taken at once (of uploads none waits in memory), a short exchange is over
soon, and a node that answers with an error is asked again at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from secagg.errors import MalformedMessage

Take = Callable[[int, RecordDict], bool]
"""Takes what a node replied; False where it was not good enough, and the node is asked again."""

_FINAL = frozenset(
    {ErrorCode.LOAD_CLIENT_APP_EXCEPTION, ErrorCode.NODE_UNAVAILABLE, ErrorCode.INVALID_FAB,
     ErrorCode.MOD_FAILED_PRECONDITION}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient an exchange is: `timeout_s` for all of it, `attempts` letters to a node.

    The waits between two looks for replies grow from the first to the longest. Of the training
    itself the timeout is Flower's (`Strategy.start`).
    """

    timeout_s: float = 300.0
    attempts: int = 2
    first_wait_s: float = 0.1
    longest_wait_s: float = 2.0
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


DEFAULT_PACE = Pace()


@dataclass(frozen=True, slots=True)
class Courier:
    """Carries letters over `grid`."""

    grid: Grid
    pace: Pace = DEFAULT_PACE

    def carry(
        self,
        message_type: str,
        letters: Mapping[int, RecordDict],
        take: Take,
        *,
        attempts: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[int, str]:
        """Every letter to its node, and every reply to `take`.

        Returns why a node has not answered, for each that has not.
        """
        deadline = self.pace.now() + (self.pace.timeout_s if timeout_s is None else timeout_s)
        tries = Counter[int]()
        silent = dict.fromkeys(
            letters, "it did not answer in time, or Flower did not take the message"
        )
        pending = self._push(message_type, letters, letters)
        wait = self.pace.first_wait_s
        while pending and self.pace.now() < deadline:
            replies = list(self.grid.pull_messages(list(pending)))
            again = []
            for reply in replies:
                node = pending.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                problem = problem_of(reply, node, take)
                tries[node] += 1
                if problem is None:
                    del silent[node]
                    continue
                silent[node] = problem
                if not final(reply) and tries[node] < (attempts or self.pace.attempts):
                    again.append(node)
            if again:
                pending |= self._push(message_type, letters, again)
            elif pending and not replies:
                self.pace.sleep(wait)
                wait = min(2 * wait, self.pace.longest_wait_s)
        return silent

    def _push(
        self, message_type: str, letters: Mapping[int, RecordDict], nodes: Iterable[int]
    ) -> dict[str, int]:
        """The nodes by the ids of their messages, of those that Flower took."""
        messages = [Message(letters[node], node, message_type) for node in nodes]
        if not messages:
            return {}
        taken = set(self.grid.push_messages(messages))
        sent = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        return {message_id: node for message_id, node in sent.items() if message_id in taken}


def problem_of(reply: Message, node: int, take: Take) -> str | None:
    """Give a node's reply to `take`; None, or why it counts for nothing."""
    if reply.has_error():
        return reply.error.reason or f"error {reply.error.code}"
    try:
        return None if take(node, reply.content) else "its reply was refused"
    except MalformedMessage as error:
        return str(error)


def final(reply: Message) -> bool:
    """Whether asking this node again cannot help."""
    return reply.has_error() and reply.error.code in _FINAL
