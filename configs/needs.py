"""Which knobs have no effect without another: refused, so that nobody believes that they have one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from configs.derived import Derived, read_by
from configs.roles import parse_role

FAST_BLOCK_UNIT = 16  # tokens: the C++ kernels take block sizes that are multiples of it
SHARES = ("kv_memory_fraction", "gpu_memory_fraction")
ADDRESS = ("host", "port")

_TIERS = ("kv_host_gib", "kv_disk_path")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Settings of which one makes another meaningless. `text` names them all and says what to change."""

    names: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """`names` have no effect unless `met`, which depends on `partner`.

    `because` completes "NAME is set, but ..."; `fix` is what to do instead of leaving NAME out.
    """

    names: tuple[str, ...]
    partner: str
    met: Callable[[Derived], bool]
    because: str
    fix: str


_NEEDS = (
    Requirement(
        ("gpus_per_engine", "cpus_per_engine"),
        "ray",
        lambda self: self.ray is not None,
        "without ray nothing is reserved for engines",
        "set ray",
    ),
    Requirement(
        ("kv_transfer",),
        "ray",
        lambda self: self.ray is not None,
        "on one machine KV goes nowhere",
        "set ray",
    ),
    Requirement(
        ("kv_transfer",),
        "kv_host_gib",
        lambda self: self.asks_for("kv_host_gib"),
        "there is no host tier from which other nodes read",
        "set kv_host_gib",
    ),
    Requirement(
        ("gpus_per_engine",),
        "device",
        lambda self: self.device != "cpu",
        "device cpu needs none",
        "set device cuda",
    ),
    Requirement(
        read_by("cuda"), "device", lambda self: self.device != "cpu", "device cpu does not read it", "set device cuda"
    ),
    Requirement(
        read_by("cpu"), "device", lambda self: self.device != "cuda", "device cuda does not read it", "set device cpu"
    ),
    Requirement(
        ("cpu_precision",),
        "block_size",
        lambda self: self.cpu_precision != "fast" or self.block_size % FAST_BLOCK_UNIT == 0,
        f"the C++ kernels need a block_size that is a multiple of {FAST_BLOCK_UNIT}",
        f"set block_size {2 * FAST_BLOCK_UNIT}",
    ),
    Requirement(
        ("speculation",),
        "gpu_kv",
        lambda self: self.speculation != "lookup" or self.gpu_kv != "fp8",
        "with gpu_kv fp8 a guess that is wrong would change the scales of its block",
        "set gpu_kv auto",
    ),
    Requirement(
        ("speculation",),
        "draft_model",
        lambda self: self.speculation != "draft" or self.draft_model is not None,
        "there is no draft model that could guess",
        "set draft_model",
    ),
    Requirement(
        ("draft_model",),
        "speculation",
        lambda self: self.speculation in ("auto", "draft"),
        "speculation off and lookup ask no model",
        "set speculation draft",
    ),
    Requirement(
        ("draft_model",),
        "cpu_precision",
        lambda self: self.speculation == "draft" or self.cpu_precision == "fast",
        "speculation auto guesses nothing where that changes roundings",
        "set cpu_precision fast or speculation draft",
    ),
    Requirement(
        ("allow_long_max_model_len",),
        "max_model_len",
        lambda self: self.max_model_len is not None,
        "without max_model_len no more than the model's own limit is asked for",
        "set max_model_len",
    ),
    Requirement(
        SHARES,
        "kv_blocks",
        lambda self: self.kv_blocks is None,
        "kv_blocks already says how large the KV pool is",
        "leave kv_blocks out",
    ),
    Requirement(
        ("kv_disk_gib",),
        "kv_disk_path",
        lambda self: self.kv_disk_path is not None,
        "without kv_disk_path there is no such tier",
        "set kv_disk_path",
    ),
    Requirement(
        (*_TIERS, "eviction", "gpu_shared_prefixes", "isolate_keys"),
        "prefix_caching",
        lambda self: self.prefix_caching,
        "with prefix_caching off no KV is kept by its content (--no-prefix-caching)",
        "set prefix_caching",
    ),
    Requirement(
        ("scheduling",),
        "prefix_caching",
        lambda self: self.prefix_caching or self.scheduling != "throughput",
        "throughput orders requests by shared prefixes, and with prefix_caching off none are kept",
        "set prefix_caching",
    ),
    Requirement(
        ("routing", "decode_slo_ms"),
        "engines",
        lambda self: self.engines > 1,
        "a single engine gets every request",
        "set engines 2 or more",
    ),
    Requirement(
        ("routing",),
        "prefix_caching",
        lambda self: self.prefix_caching or self.routing != "prefix-aware",
        "with prefix_caching off there are no prefixes to be aware of",
        "set prefix_caching",
    ),
    Requirement(
        ("decode_slo_ms",),
        "routing",
        lambda self: self.router == "prefix-aware",
        "only prefix-aware routing looks at the time between tokens",
        "set routing prefix-aware",
    ),
    Requirement(
        ("roles",),
        "kv_host_gib",
        lambda self: "prefill" not in dict(map(parse_role, self.roles)) or self.asks_for("kv_host_gib"),
        "a prefill engine hands KV over by way of the host's tier, and there is none",
        "set kv_host_gib",
    ),
    Requirement(
        ("ttft_slo_ms", "role_switching"),
        "roles",
        lambda self: {"prefill", "decode"} <= set(dict(map(parse_role, self.roles))),
        "without prefill and decode engines no role can switch",
        "set roles prefill:1,decode:1",
    ),
    Requirement(
        ("ttft_slo_ms",),
        "decode_slo_ms",
        lambda self: self.phase_slos is not None,
        "roles switch, unless role_switching is off, only by bounds of both phases",
        "set decode_slo_ms, and leave role_switching at auto",
    ),
    Requirement(
        ("preemption",),
        "kv_host_gib",
        lambda self: self.preemption != "swap" or any(map(self.asks_for, _TIERS)),
        "swap saves KV to a tier, and there is none",
        "set kv_host_gib or kv_disk_path",
    ),
    Requirement(
        ("protect_kv",),
        "kv_host_gib",
        lambda self: any(map(self.asks_for, _TIERS)),
        "KV is protected by copies in a tier, and there is none",
        "set kv_host_gib or kv_disk_path",
    ),
    Requirement(
        ("preemption",),
        "max_preemptions",
        lambda self: self.preemption != "swap" or self.max_preemptions > 0,
        "with max_preemptions 0 nothing is ever preempted",
        "set max_preemptions",
    ),
    Requirement(
        ("health_seconds",),
        "hang_seconds",
        lambda self: self.health_seconds <= self.hang_seconds,
        "an engine is killed before /health says no, as hang_seconds is less",
        "set hang_seconds to more",
    ),
    Requirement(
        _TIERS,
        "tensor_parallel",
        lambda self: self.tensor_parallel == 1,
        "a tier keeps whole blocks, and with tensor_parallel each GPU holds only a part of each",
        "set tensor_parallel 1",
    ),
    Requirement(
        ("tenant_weights", "decode_price"),
        "scheduling",
        lambda self: self.scheduling == "fair",
        "only scheduling fair reads it",
        "set scheduling fair",
    ),
    Requirement(
        ("priority_keys", "priority_aging_seconds"),
        "scheduling",
        lambda self: self.scheduling != "fcfs",
        "with fcfs requests have no priorities",
        "set scheduling priority, fair or throughput",
    ),
    Requirement(
        ("priority_scope",),
        "scheduling",
        lambda self: self.scheduling != "fcfs" or self.priority_scope == "none",
        "with fcfs requests have no priorities",
        "set scheduling priority, fair or throughput",
    ),
    Requirement(
        ("priority_keys",),
        "priority_scope",
        lambda self: self.priority_scope == "tenant",
        "only priority_scope tenant tells keys apart",
        "set priority_scope tenant",
    ),
    Requirement(
        ("priority_aging_seconds",),
        "priority_scope",
        lambda self: self.priority_scope != "none",
        "with priority_scope none all priorities are equal",
        "set priority_scope tenant or all",
    ),
    Requirement(
        ("priority_aging_seconds",),
        "priority_keys",
        lambda self: not self.no_key_has_priorities,
        "with throughput and priority_scope tenant only the keys of priority_keys have priorities, and it is empty",
        "set priority_keys",
    ),
    Requirement(
        ("max_file_bytes", "max_stored_bytes", "max_batch_lines", "batch_step_tokens"),
        "data_dir",
        lambda self: self.data_dir is not None,
        "without data_dir there are no files and batches",
        "set data_dir",
    ),
    Requirement(
        ("response_bytes", "max_background"),
        "response_seconds",
        lambda self: self.response_seconds > 0,
        "with response_seconds 0 no response is stored",
        "set response_seconds to more",
    ),
    Requirement(
        ("resume_bytes", "resume_total_bytes"),
        "resume_seconds",
        lambda self: self.resume_seconds > 0,
        "with resume_seconds 0 no stream is kept",
        "set resume_seconds to more",
    ),
    Requirement(
        ADDRESS,
        "uds",
        lambda self: self.uds is None,
        "uds says where to listen",
        "leave uds out",
    ),
    Requirement(
        ("log_blocks",),
        "access_log",
        lambda self: self.access_log,
        "there is no access log",
        "set access_log",
    ),
    Requirement(
        ("log_content",),
        "access_log",
        lambda self: self.access_log or self.traced_by() is not None,
        "there is neither an access log nor a place to which traces are sent",
        "set access_log or otlp_endpoint",
    ),
    Requirement(
        ("tls_key",),
        "tls_cert",
        lambda self: self.tls_cert is not None,
        "without tls_cert TLS is not spoken",
        "set tls_cert",
    ),
    Requirement(
        ("forwarded_allow_ips",),
        "uds",
        lambda self: self.uds is None,
        "whoever may connect to a Unix socket is believed",
        "leave uds out",
    ),
    Requirement(
        ("uds_access",),
        "uds",
        lambda self: self.uds is not None,
        "without uds there is no Unix socket",
        "set uds",
    ),
    Requirement(
        ("isolate_keys", "usage_db"),
        "api_key",
        lambda self: self.keyed,
        "there are neither api_key nor api_keys, so there are no keys to which it could apply",
        "set api_key or api_keys",
    ),
    Requirement(
        ("key_names", "priority_keys", "admin_keys"),
        "api_key",
        lambda self: bool(self.api_key),
        "api_key is empty, so there are no keys to which it could apply",
        "set api_key",
    ),
)


def unread(settings: Derived) -> Iterator[Contradiction]:
    """Knobs that are set and that nothing would read."""
    for need in _NEEDS:
        for name in need.names:
            if settings.asks_for(name) and not need.met(settings):
                text = f"{name} is set, but {need.because}: {need.fix}, or leave {name} out"
                yield Contradiction((name, need.partner), text)
