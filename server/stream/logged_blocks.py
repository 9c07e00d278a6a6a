"""What of a prompt others share, without a word of it: salted hashes of its blocks and of its session, for the access log.

Equal hashes are equal beginnings. The salt is drawn when the server starts and told to nobody, so that no text can be tried against
them; hashes of two starts have nothing in common. `headrace loadtest record` makes a trace of them.
"""

import secrets
from hashlib import blake2b

from scheduler.types.block_hash import block_names, root_hash
from server.stream.job import Job

BLOCK_TOKENS = 32
_SHOWN_BYTES = 6  # among a million blocks, two are taken for one with a chance of 1 in 500
_SALT = secrets.token_hex(16)


def logged_blocks(job: Job, session: str | None) -> dict[str, object]:
    """`block_tokens` and `blocks` of the job's prompt, if all its sequences have one, and `session`, if its client named one.

    A last block that is not full has no hash. Names are separated by commas.
    """
    fields: dict[str, object] = {}
    ids = job.sequences[0].prompt.ids
    if all(each.prompt.ids == ids for each in job.sequences):
        names = block_names(root_hash("access log", _SALT), ids, BLOCK_TOKENS)
        fields = {"block_tokens": BLOCK_TOKENS, "blocks": ",".join(name[:_SHOWN_BYTES].hex() for name in names)}
    if session is not None:
        digest = blake2b(session.encode(), digest_size=_SHOWN_BYTES, key=_SALT.encode())
        fields["session"] = digest.hexdigest()
    return fields
