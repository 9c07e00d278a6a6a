"""What KV goes over from one replica to another: links by name, with the figures of their data sheets."""

from dataclasses import dataclass

USABLE = 0.9  # of the line rate: headers, and the pauses between two transfers; not measured here


@dataclass(frozen=True, slots=True)
class LinkKind:
    """A kind of link.

    Attributes:
        line_rate: bytes per second in one direction.
        source: of that figure.
    """

    line_rate: float
    source: str

    @property
    def bytes_per_second(self) -> float:
        """What transfers get of it."""
        return USABLE * self.line_rate


LINKS = {
    "nvlink4": LinkKind(450e9, "NVIDIA H100 and H200 data sheets: NVLink 900 GB/s, half of it in each direction"),
    "nvlink5": LinkKind(900e9, "NVIDIA B200 data sheet: NVLink 1.8 TB/s, half of it in each direction"),
    "pcie4": LinkKind(31.5e9, "PCI Express 4.0 x16: 16 lanes of 16 GT/s, 128 of 130 bits"),
    "pcie5": LinkKind(63e9, "PCI Express 5.0 x16: 16 lanes of 32 GT/s, 128 of 130 bits"),
    "ib-hdr": LinkKind(25e9, "NVIDIA ConnectX-6 data sheet: InfiniBand HDR or Ethernet, 200 Gb/s a port"),
    "ib-ndr": LinkKind(50e9, "NVIDIA ConnectX-7 data sheet: InfiniBand NDR, 400 Gb/s; a DGX H200 has one for each GPU"),
    "roce-400": LinkKind(50e9, "NVIDIA ConnectX-7 data sheet: Ethernet, 400 Gb/s"),
    "roce-100": LinkKind(12.5e9, "IEEE 802.3 100GBASE: 100 Gb/s"),
    "ethernet-25": LinkKind(3.125e9, "IEEE 802.3 25GBASE: 25 Gb/s"),
}


def link_rate(text: str) -> float:
    """Bytes per second, from a number or the name of a link. Raises ValueError."""
    if text in LINKS:
        return LINKS[text].bytes_per_second
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise ValueError(f"{text!r} is neither bytes per second above 0 nor one of {', '.join(LINKS)}")
    return rate
