"""What one of several engines may take of the machine. The server divides it, once and before anything is loaded; an engine finds
its part in a variable, as the ranks that it starts do.

Parts are equal, so that the engines are, and stay the same when one of them is started again: what the others use is not
counted twice.
"""

import os

import msgspec

_VARIABLE = "HEADRACE_ENGINE_SHARE"
_DEVICES = "CUDA_VISIBLE_DEVICES"


class Share(msgspec.Struct, frozen=True):
    """One engine's part.

    Attributes:
        engine: its name.
        engines: that share the machine.
        memory: of the host, in bytes.
        cores: it may keep busy.
        devices: its GPUs, as `CUDA_VISIBLE_DEVICES` names them; empty where a CPU computes.
        weights: descriptor of the memory in which all engines that compute on a CPU have their weights; None: each has its own.
    """

    engine: str
    engines: int
    memory: int
    cores: int
    devices: list[str]
    weights: int | None = None

    @property
    def weights_holders(self) -> int:
        """How many engines have the same copy of their weights."""
        return 1 if self.weights is None else self.engines

    def encode(self) -> str:
        """As text, for a command line."""
        return msgspec.json.encode(self).decode()

    def take(self) -> None:
        """Bound this process, and those that it starts, to this part. Before torch is imported."""
        os.environ[_VARIABLE] = self.encode()
        if self.devices:
            os.environ[_DEVICES] = ",".join(self.devices)


def decode_share(text: str) -> Share:
    """What `Share.encode` wrote.

    Raises:
        ValueError: it is something else.
    """
    return msgspec.json.decode(text, type=Share)


def own_share() -> Share | None:
    """This process's part; None: it has the machine to itself."""
    text = os.environ.get(_VARIABLE)
    return decode_share(text) if text else None


def visible_devices(count: int) -> list[str]:
    """Names of the first `count` GPUs that this process sees."""
    named = os.environ.get(_DEVICES)
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]
