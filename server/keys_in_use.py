"""The keys of a running server, what they may and have used, and the file that says so."""

import asyncio
import itertools
import logging
import signal

from configs.settings import Settings
from server.api.tenants import KeyRing
from server.keys.accounts import Accounts
from server.keys.key_file import KeyFile
from server.keys.usage import UseBook
from server.keys.watch import WatchedKeyFile
from server.telemetry.metrics import Metrics

_LOOK_SECONDS = 1.0  # between two looks at what open requests have generated
_FLUSH_LOOKS = 5  # of these between two writes of use
_log = logging.getLogger("headrace.keys")


class KeysInUse:
    """Makes what belongs together, and keeps it up to date.

    Args:
        settings: the server's.
        file: the file of `api_keys`, if there is one.
        metrics: the server's.

    Attributes:
        ring: all keys.
        accounts: what they use; None if it is not counted.

    Raises:
        UsageError: the file of use cannot be used.
    """

    def __init__(self, settings: Settings, file: WatchedKeyFile | None, metrics: Metrics) -> None:
        self.ring = KeyRing(settings)
        self.accounts: Accounts | None = None
        self._settings, self._file, self._metrics = settings, file, metrics
        if settings.keeps_accounts:
            book = UseBook(settings.usage_db, metrics.keys.usage_not_written)
            self.accounts = Accounts(book, metrics.keys)
            for tenant in dict.fromkeys(settings.tenants):
                metrics.keys.known(tenant)
        if file is not None:
            file.follow(self._changed, metrics.keys.file_refused)
            self._take(file.current)

    @property
    def changes(self) -> bool:
        """Whether there is anything to keep up to date."""
        return self._file is not None or self.accounts is not None

    def handle_signal(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have SIGHUP read the file."""
        if self._file is not None:
            loop.add_signal_handler(signal.SIGHUP, self._file.look_now)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._file is not None:
                tasks.create_task(self._file.watch())
            if self.accounts is not None:
                tasks.create_task(_keep(self.accounts))

    async def close(self) -> None:
        """Write down what is not written yet. All requests have ended."""
        if self.accounts is not None:
            await self.accounts.book.close()

    def _changed(self, file: KeyFile) -> None:
        self._metrics.keys.file_reread()
        self._take(file)

    def _take(self, file: KeyFile) -> None:
        weights = file.weights
        self.ring.take(file.entries, weights)
        self._metrics.keys.file_taken(len(file.entries))
        self._metrics.tenants.follow({**self._settings.shares, **weights})
        if self.accounts is not None:
            self.accounts.follow((entry.name, entry.limits) for entry in file.entries)


async def _keep(accounts: Accounts) -> None:
    for looks in itertools.count(1):
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            accounts.look()
            if looks % _FLUSH_LOOKS == 0:
                await accounts.book.flush()
        except Exception:
            _log.exception("what keys use could not be looked at")
