"""Half an hour in which processes die and hang under load: no request is lost, no text changes, nothing is left behind.

CHAOS_MINUTES, CHAOS_SEED and CHAOS_ARGUMENTS (more of `headrace serve`, such as "--roles prefill:1,decode:2") say what is run; the
table of faults is printed at the end of the run.
"""

import asyncio
import os
import shlex

import pytest

from tests.e2e.chaos.clients import Clients, undisturbed
from tests.e2e.chaos.faults import Faults, hit_by, percentile, table
from tests.e2e.chaos.pool import Pool
from tests.e2e.chaos.questions import questions

pytestmark = [pytest.mark.processes, pytest.mark.long]

MINUTES = float(os.environ.get("CHAOS_MINUTES", "30"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
ARGUMENTS = shlex.split(os.environ.get("CHAOS_ARGUMENTS", ""))
CLIENTS = 5
SERVER = (
    *("--engines", "3", "--kv-blocks", "200", "--max-step-tokens", "128", "--kv-host-gib", "0.1"),
    *("--hang-seconds", "5", "--drain-seconds", "5"),
)


@pytest.mark.timeout(60 * MINUTES + 900)
def test_no_client_notices_whatever_is_killed(tmp_path, record_property):
    pool = Pool(tmp_path, *SERVER, *ARGUMENTS)
    try:
        pool.wait_ready()
        clients, faults = asyncio.run(disturbed(pool))
    finally:
        wrong = list(pool.stop())
    told = [
        f"{len(clients.asked)} requests in {MINUTES:g} minutes, seed {SEED}",
        table(faults.done, clients.asked),
        pauses("streams", clients.asked),
        pauses("streams that were open at a fault", hit_by(faults.done, clients.asked)),
    ]
    record_property("told", "\n".join(told))
    lost = [f"{one.kind}, {one.ended - one.begun:.1f} s: {one.outcome}" for one in clients.asked if one.lost]
    wrong += [f"{len(lost)} requests were lost", *lost[:10]] if lost else []
    wrong += [line.strip() for line in pool.printed if "Traceback" in line or "ends by a defect" in line]
    assert not wrong, "\n".join([*wrong, "".join(pool.printed[-200:])])
    assert faults.done, "nothing was done"


def pauses(whose, asked):
    """The longest pause between two events of each."""
    longest = [one.pause for one in asked if one.pause]
    median, p99, most = (percentile(longest, share) for share in (0.5, 0.99, 1.0))
    return f"longest pause of {len(longest)} {whose}: median {median:.2f} s, p99 {p99:.2f} s, at most {most:.2f} s"


async def disturbed(pool):
    over = asyncio.Event()
    faults = Faults(pool, SEED)
    expected = await undisturbed(pool.url, questions())
    clients = Clients(pool.url, expected, faults.reachable.wait, faults.http_killed)
    asking = [asyncio.create_task(clients.run(SEED * 1000 + number, over)) for number in range(CLIENTS)]
    try:
        await faults.run(clients, 60 * MINUTES)
    finally:
        over.set()
        await asyncio.gather(*asking)
    await asyncio.to_thread(pool.wait_ready)
    return clients, faults
