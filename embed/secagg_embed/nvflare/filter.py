"""A site's own guard: nothing but protected content passes, whatever the server's job asks for.

In the site's `local/privacy.json`, which the site's administrator writes and no job can change:

    {
      "scopes": [{
        "name": "protected",
        "task_data_filters": [{"path": "secagg_embed.nvflare.ProtectedOnly"}],
        "task_result_filters": [{"path": "secagg_embed.nvflare.ProtectedOnly"}]
      }],
      "default_scope": "protected",
      "components": [{"id": "protected_only", "path": "secagg_embed.nvflare.ProtectedOnly"}]
    }

- As a filter of task data it refuses tasks that are not ours before anything runs: no training for
  an unprotected round. The Collab API needs one setting: `{"args": {"collab": true}}` lets its two
  tasks of preparation pass, after which its calls go past every filter of NVFLARE's.
- As a filter of task results it refuses what is not protected and passes a copy of what is.
- NVFLARE runs a job's own filters after the site's. As a component it looks again after those, and
  empties in place what they put back.

A filter that raises makes NVFLARE send an empty reply with the code TASK_DATA_FILTER_ERROR or
TASK_RESULT_FILTER_ERROR, and log the reason at the site. A job that names another scope is not
guarded by this one: define no scope without it, and set `default_scope`.
"""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.collab.runtime.defs import SETUP_TASK_NAME, SYNC_TASK_NAME, SyncKey

from secagg_embed.nvflare.shareables import Unprotected, message_of, only_protected


class ProtectedOnly(Filter):
    """See the module's docstring."""

    def __init__(self, collab: bool = False) -> None:
        super().__init__()
        self.collab = collab

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The same task, or a result with what is protected in it.

        Raises:
            Unprotected: there is anything else in it; NVFLARE sends an empty error reply instead.
        """
        if self._prepares_collab(shareable, fl_ctx):
            return shareable
        if self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN:
            message_of(shareable, fl_ctx.get_identity_name())
            return shareable
        return only_protected(shareable)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """After all filters, the job's too: what is not protected loses its content."""
        if event_type != EventType.AFTER_TASK_RESULT_FILTER:
            return
        result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        if not isinstance(result, dict) or self._prepares_collab(result, fl_ctx):
            return
        try:
            only_protected(result)
        except Unprotected as error:
            result.clear()
            if isinstance(result, Shareable):
                result.set_return_code(ReturnCode.TASK_RESULT_FILTER_ERROR)
            self.log_error(fl_ctx, f"after the job's filters, nothing leaves: {error}")

    def _prepares_collab(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Whether this is one of Collab's two tasks: names of methods, and no other content."""
        named = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        return self.collab and named in (SYNC_TASK_NAME, SETUP_TASK_NAME) and _bare(shareable)


def _bare(shareable: Shareable) -> bool:
    known = {
        value for keys in (SyncKey, ReservedHeaderKey) for name, value in vars(keys).items()
        if name.isupper()
    }  # fmt: skip
    return all(name in known for name in shareable)
