"""Whether coding its blocks pays for a store: the store's bandwidth against the codec's ratio and speed, all as they were seen."""


class Rate:
    """How much of something comes out of a unit of something else, what was seen last counting most: bytes out of a second.

    Both sums decay alike, so that a small sample moves the rate less than a large one does.

    Args:
        guess: the rate before anything was seen; the first sample replaces it.
        keep: how much of the sums is left when a sample arrives.
    """

    def __init__(self, guess: float | None = None, *, keep: float = 0.9) -> None:
        self._guess = guess
        self._keep = keep
        self._out = 0.0
        self._of = 0.0

    @property
    def value(self) -> float | None:
        """None: nothing seen and nothing guessed."""
        return self._out / self._of if self._of > 0 else self._guess

    def saw(self, out: float, of: float) -> None:
        """A sample. One that came out of nothing, or with nothing, says nothing."""
        if out > 0 and of > 0:
            self._out = self._out * self._keep + out
            self._of = self._of * self._keep + of


def seconds_saved(
    raw_bytes: float, *, ratio: float, write: float, read: float, encode: float, decode: float, reads: float = 1.0
) -> float:
    """Time that coding saves over a block's life in a store: written once, read `reads` times. Negative: what it costs.

    Coding and I/O of a block come one after the other, and are priced so; a caller that overlaps them saves more.

    Args:
        raw_bytes: of the block.
        ratio: encoded bytes over raw ones.
        write: bytes per second that the store takes, coded or not.
        read: bytes per second that it gives back.
        encode: raw bytes per second that the codec takes.
        decode: raw bytes per second that it gives back.
        reads: how often a kept block is read, on average.
    """
    saved = (1 - ratio) * (1 / write + reads / read)
    spent = 1 / encode + reads / decode
    return raw_bytes * (saved - spent)


class CodecChoice:
    """Decides between a codec and none for one store. No clock inside: callers tell what took how long. For one thread.

    Args:
        ratio, encode, decode: of the codec, before it was seen at work here. `engine.kv_store.codec` has figures.
        reads: how often a kept block is read. 1 favours the reads, which requests wait for, over the writes, which nobody waits
            for and which are more than one to a read.
        margin: the choice changes when the other one is better by this share of its time, so that it does not flicker.

    Attributes:
        on: the choice as it stands. Off until the store's bandwidth in both directions has been seen.
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
        """The store took so many bytes, encoded or not, in so much time without the encoding."""
        self._write.saw(stored_bytes, seconds)

    def read(self, stored_bytes: int, seconds: float) -> None:
        """The store gave so many bytes, encoded or not, in so much time without the decoding."""
        self._read.saw(stored_bytes, seconds)

    def encoded(self, raw_bytes: int, encoded_bytes: int, seconds: float) -> None:
        """The codec made these of those."""
        self._encode.saw(raw_bytes, seconds)
        self._ratio.saw(encoded_bytes, raw_bytes)

    def decoded(self, raw_bytes: int, seconds: float) -> None:
        """The codec gave so many bytes back."""
        self._decode.saw(raw_bytes, seconds)

    def decide(self) -> bool:
        """Weigh what was seen so far; sets `on` and returns it."""
        ratio, encode, decode = self._ratio.value, self._encode.value, self._decode.value
        write, read = self._write.value, self._read.value
        if ratio and encode and decode and write and read:
            saved = seconds_saved(
                1.0, ratio=ratio, write=write, read=read, encode=encode, decode=decode, reads=self._reads
            )
            threshold = self._margin * (1 / write + self._reads / read)
            self.on = saved > (-threshold if self.on else threshold)
        return self.on
