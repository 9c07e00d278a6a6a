"""The names of a prompt's KV blocks, as engines give them, so that it is known which engine has them."""

from scheduler.types.block_hash import block_names, root_hash
from scheduler.types.messages import AddRequest, Ready


class PromptNames:
    """Computes them, and remembers those of the last prompt: it is looked for in several engines, and sent several times."""

    def __init__(self) -> None:
        self._last: tuple[list[int], str] = [], ""  # prompt and salt
        self._names: dict[tuple[str, int], list[bytes]] = {}  # by engines' fingerprint and block size

    def of(self, request: AddRequest, info: Ready | None) -> list[bytes]:
        """The names of the full blocks of a prompt that can be found in a cache: its last token is always computed.

        Args:
            request: the prompt's.
            info: what the engine said; None: nothing yet, so nothing is known of its names.
        """
        if info is None or request.adapter:  # an adapter's part of the name is known to the engine alone
            return []
        ids, salt = self._last
        if ids is not request.prompt_ids or salt != request.cache_salt:
            self._last, self._names = (request.prompt_ids, request.cache_salt), {}
        kind = (info.kv_fingerprint, info.block_size)
        if kind not in self._names:
            root = root_hash(info.kv_fingerprint, request.cache_salt)
            self._names[kind] = block_names(root, request.prompt_ids[:-1], info.block_size)
        return self._names[kind]
