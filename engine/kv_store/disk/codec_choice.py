"""Whether encoding its blocks pays for a store: the store's bandwidth against the codec's ratio and speed, all as measured."""


class Rate:
    """A ratio of two sums, such as bytes per second, in which the latest samples count most.

    Both sums decay alike, so that a small sample moves the rate less than a large one does.

    Args:
        guess: the rate before the first sample, which replaces it.
        keep: the fraction of the sums that is left when a sample arrives.
    """

    def __init__(self, guess: float | None = None, *, keep: float = 0.9) -> None:
        self._guess = guess
        self._keep = keep
        self._out = 0.0
        self._of = 0.0

    @property
    def value(self) -> float | None:
        """The rate; None: there is neither a sample nor a guess."""
        return self._out / self._of if self._of > 0 else self._guess

    def saw(self, out: float, of: float) -> None:
        """Add a sample: `out` came of `of`. It is ignored if either is zero."""
        if out > 0 and of > 0:
            self._out = self._out * self._keep + out
            self._of = self._of * self._keep + of


def seconds_saved(
    raw_bytes: float, *, ratio: float, write: float, read: float, encode: float, decode: float, reads: float = 1.0
) -> float:
    """Seconds that encoding saves over a block's life in a store: written once, read `reads` times. Negative: what it costs.

    Coding and I/O of a block come one after the other, and are counted that way; a caller that overlaps them saves more.

    Args:
        raw_bytes: size of the block.
        ratio: encoded bytes over raw bytes.
        write: bytes per second that the store takes, encoded or not.
        read: bytes per second that the store gives back.
        encode: raw bytes per second that the codec takes.
        decode: raw bytes per second that the codec gives back.
        reads: how often a kept block is read, on average.
    """
    saved = (1 - ratio) * (1 / write + reads / read)
    spent = 1 / encode + reads / decode
    return raw_bytes * (saved - spent)


class CodecChoice:
    """Decides between a codec and none for one store. It has no clock: callers say what took how long. For one thread.

    Args:
        ratio, encode, decode: what is assumed of the codec until it has been measured here (figures in `kv_store/disk/codec.py`).
        reads: how often a kept block is read. 1 favours reads, which requests wait for, over writes, which nobody waits for and of
            which there are more than one per read.
        margin: the choice changes when the other one is better by this fraction of the time, so that it does not flicker.

    Attributes:
        on: the current choice. Off until the store's bandwidth in both directions has been measured.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.7,
        encode: float = 700e6,
        decode: float = 1900e6,
        reads: float = 1.0,
        margin: float = 0.05,
    ) -> None:
        self.on = False
        self._reads = reads
        self._margin = margin
        self._ratio, self._encode, self._decode = Rate(ratio), Rate(encode), Rate(decode)
        self._write, self._read = Rate(), Rate()

    def wrote(self, stored_bytes: int, seconds: float) -> None:
        """The store wrote `stored_bytes`, encoded or not, in `seconds`, encoding excluded."""
        self._write.saw(stored_bytes, seconds)

    def read(self, stored_bytes: int, seconds: float) -> None:
        """The store read `stored_bytes`, encoded or not, in `seconds`, decoding excluded."""
        self._read.saw(stored_bytes, seconds)

    def encoded(self, raw_bytes: int, encoded_bytes: int, seconds: float) -> None:
        """The codec turned `raw_bytes` into `encoded_bytes` in `seconds`."""
        self._encode.saw(raw_bytes, seconds)
        self._ratio.saw(encoded_bytes, raw_bytes)

    def decoded(self, raw_bytes: int, seconds: float) -> None:
        """The codec gave back `raw_bytes` in `seconds`."""
        self._decode.saw(raw_bytes, seconds)

    def decide(self) -> bool:
        """Weigh what has been measured so far; sets `on` and returns it."""
        ratio, encode, decode = self._ratio.value, self._encode.value, self._decode.value
        write, read = self._write.value, self._read.value
        if ratio and encode and decode and write and read:
            saved = seconds_saved(
                1.0, ratio=ratio, write=write, read=read, encode=encode, decode=decode, reads=self._reads
            )
            threshold = self._margin * (1 / write + self._reads / read)
            self.on = saved > (-threshold if self.on else threshold)
        return self.on
