"""The one table of variables and flags.

Each field of `Settings` is a row: its type and bounds, its default, and a `Var` with its section, its old name and its
meaning. Everything else is made from the rows: flags, ``config show``, ``docs/reference/settings.md``. Names and bounds
are those of the reference README; what the reference does not know has only its ``VLLMRT_`` name.
"""

# No postponed annotations in this module: the rows are read from them at every start, and evaluating strings is slow.
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from vllmrt import paths

GpuCondition = Literal["temperature", "memory", "utilization"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Conditions = tuple[GpuCondition, ...]
Text = Annotated[str, Meta(min_length=1)]
Names = tuple[Text, ...]
# what follows GPU- or MIG- is hexadecimal, or the old form GPU-.../1/0 of a MIG instance
Device = Annotated[str, Meta(pattern=r"^([0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z/-]+)$")]
Devices = Annotated[tuple[Device, ...], Meta(description="of indices and UUIDs (GPU-…, MIG-…)")]
Sources = Annotated[tuple[Text, ...], Meta(min_length=1)]
Word = Annotated[str, Meta(pattern=r"^\S+$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Connections = Annotated[int, Meta(ge=1, le=64)]
Positive = Annotated[int, Meta(ge=1)]
Percent = Annotated[int, Meta(ge=0, le=100)]
# a hundred million is three years, and less than any clock or lock overflows at
Seconds = Annotated[float, Meta(gt=0, le=100_000_000)]
WholeSeconds = Annotated[int, Meta(ge=0, le=100_000_000)]
Gibibytes = Annotated[float, Meta(ge=0)]


MASK = "********"


def without_user(value: object) -> object:
    """Return a value as it may be shown: a URL without its user and password."""
    if not isinstance(value, str):
        return value
    scheme, slashes, rest = value.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{slashes}{MASK if user else ''}{at}{place}"


class Var(NamedTuple):
    """What the type of a row does not say.

    Attributes:
        section: the heading under which help and documentation list it.
        old: its name in the reference, or in the ecosystem that owns it; None for a setting of our own.
        help: its meaning, with units.
        flag: its name on the command line, None where there is none.
        strict: True for the booleans of the reference that accept ``0`` and ``1`` only.
        secret: True when no output may show the value.
        engine: True when vLLM defines `old` with the same meaning, so that the server's environment keeps it.
        blank: True when an empty variable has a meaning of its own, instead of being unset.
        older: a further name, which the owner of `old` reads where that is unset.
        hub: True for the booleans of huggingface_hub, which accepts ``on`` too.
    """

    section: str
    old: str | None
    help: str
    flag: str | None = None
    strict: bool = False
    secret: bool = False
    engine: bool = False
    blank: bool = False
    older: str | None = None
    hub: bool = False


class Settings(Struct, frozen=True, kw_only=True):
    """A snapshot of every setting; once it is made, nobody reads the environment."""

    model: Annotated[
        Text | None,
        Var("model", "VLLM_MODEL", "Name of the model's directory, one safe path element"),
    ] = None
    model_org: Annotated[
        Text | None,
        Var("model", "VLLM_MODEL_ORG", "Organisation: the id is ORG/MODEL where VLLM_MODEL_ID is not set"),
    ] = None
    model_id: Annotated[Text | None, Var("model", "VLLM_MODEL_ID", "Id of the model, org/name")] = None
    model_revision: Annotated[
        Text | None,
        Var(
            "model",
            "VLLM_MODEL_REVISION",
            "Branch, tag or commit; unset: what the source calls its default",
            flag="--revision",
        ),
    ] = None
    model_sources: Annotated[
        Sources, Var("model", "VLLM_MODEL_SOURCES", "Sources to ask, in this order", flag="--sources")
    ] = ("package", "flox", "local", "hf-cache", "r2", "hf-hub")
    models_dir: Annotated[
        Path | None,
        Var(
            "model",
            "VLLM_MODELS_DIR",
            "The store: models, locks and a Hugging Face cache below hub/",
            flag="--models-dir",
        ),
    ] = None
    model_env_file: Annotated[
        Path | None,
        Var(
            "model",
            "VLLM_MODEL_ENV_FILE",
            "Env file to write and read; unset: derived from cache and model",
            flag="--env-file",
        ),
    ] = None
    resolve_lock_timeout: Annotated[
        WholeSeconds,
        Var(
            "model",
            "VLLM_RESOLVE_LOCK_TIMEOUT",
            "Seconds to wait for another process that resolves the same model",
            flag="--lock-timeout",
        ),
    ] = 300
    skip_tokenizer_check: Annotated[
        bool, Var("model", "VLLM_SKIP_TOKENIZER_CHECK", "Accept a model without a recognised tokenizer", strict=True)
    ] = False
    safe_weights_only: Annotated[
        bool, Var("model", None, "Refuse pickle weights (.bin, .pt, .pth), which can run code when loaded")
    ] = False
    keep_logs: Annotated[
        bool,
        Var("model", "VLLM_KEEP_LOGS", "Keep the log, beside the env file, of a resolve that succeeded", strict=True),
    ] = False

    include: Annotated[
        Names, Var("transfer", None, "Patterns of the files to fetch, instead of what vLLM loads", "--include")
    ] = ()
    exclude: Annotated[Names, Var("transfer", None, "Patterns of files not to fetch", "--exclude")] = ()
    connections: Annotated[Connections, Var("transfer", None, "Ranges to fetch at a time", "--connections")] = 8
    stall_timeout: Annotated[Seconds, Var("transfer", None, "Seconds without a byte before a new connection")] = 20.0

    flox_env: Annotated[Path | None, Var("stores", "FLOX_ENV", "The Flox environment; set by Flox")] = None
    flox_env_project: Annotated[
        Path | None,
        Var("stores", "FLOX_ENV_PROJECT", "The Flox project; its models/ is the default store. Set by Flox"),
    ] = None
    flox_env_cache: Annotated[
        Path | None,
        Var(
            "stores",
            "FLOX_ENV_CACHE",
            "Cache directory: env files, engine config, manifests of models in place",
            flag="--cache-dir",
        ),
    ] = None
    hf_token: Annotated[
        Text | None,
        Var("stores", "HF_TOKEN", "Token for gated models", secret=True, older="HUGGING_FACE_HUB_TOKEN"),
    ] = None
    hf_token_path: Annotated[
        Path | None,
        Var("stores", "HF_TOKEN_PATH", "File with the token, where HF_TOKEN is unset; unset: HF_HOME/token"),
    ] = None
    hf_endpoint: Annotated[Text, Var("stores", "HF_ENDPOINT", "The Hugging Face Hub, or a mirror of it")] = (
        "https://huggingface.co"
    )
    hf_hub_offline: Annotated[
        bool, Var("stores", "HF_HUB_OFFLINE", "Do not ask the Hugging Face Hub", older="TRANSFORMERS_OFFLINE", hub=True)
    ] = False
    hf_home: Annotated[
        Path | None,
        Var("stores", "HF_HOME", "Home of the Hugging Face libraries; its hub/ is searched after the store's"),
    ] = None
    hf_hub_cache: Annotated[
        Path | None, Var("stores", "HF_HUB_CACHE", "Hugging Face cache, searched after the store's")
    ] = None
    model_url: Annotated[
        Text | None,
        Var(
            "stores",
            None,
            "URL of the model's directory for the source fsspec, with {org} and {name} for the parts of its id",
            flag="--model-url",
            secret=True,
        ),
    ] = None
    r2_bucket: Annotated[Text | None, Var("stores", "R2_BUCKET", "R2 or S3 bucket")] = None
    r2_models_prefix: Annotated[
        Text | None, Var("stores", "R2_MODELS_PREFIX", "Key prefix of the models in the bucket")
    ] = None
    r2_endpoint_url: Annotated[Text | None, Var("stores", "R2_ENDPOINT_URL", "Endpoint of the bucket's service")] = None

    host: Annotated[Word, Var("server", "VLLM_HOST", "Address to listen on", flag="--host")] = "127.0.0.1"
    port: Annotated[Port, Var("server", "VLLM_PORT", "Port to listen on", flag="--port")] = 8000
    api_key: Annotated[
        Text | None, Var("server", "VLLM_API_KEY", "Bearer token that clients must send", secret=True, engine=True)
    ] = None
    require_api_key: Annotated[
        bool, Var("server", None, "Refuse to serve on another address than loopback without a key of your own")
    ] = False
    served_model_name: Annotated[
        Text | None,
        Var(
            "server",
            "VLLM_SERVED_MODEL_NAME",
            "Name of the model in the API; unset: its id",
            flag="--served-model-name",
        ),
    ] = None

    vllm: Annotated[
        Path | None,
        Var("engine", None, "The vllm executable; unset: beside the interpreter, then on PATH", flag="--vllm"),
    ] = None
    config_file: Annotated[
        Path | None,
        Var("engine", "VLLM_CONFIG_FILE", "The engine's config; unset: vllm-config.yaml in the cache", flag="--config"),
    ] = None
    tensor_parallel_size: Annotated[
        Positive,
        Var("engine", "VLLM_TENSOR_PARALLEL_SIZE", "GPUs that share each layer", flag="--tensor-parallel-size"),
    ] = 1
    pipeline_parallel_size: Annotated[
        Positive,
        Var(
            "engine",
            "VLLM_PIPELINE_PARALLEL_SIZE",
            "GPUs among which the layers are divided",
            flag="--pipeline-parallel-size",
        ),
    ] = 1
    prefix_caching: Annotated[
        bool, Var("engine", "VLLM_PREFIX_CACHING", "Pass --enable-prefix-caching", flag="--prefix-caching")
    ] = False
    kv_cache_dtype: Annotated[
        Word, Var("engine", "VLLM_KV_CACHE_DTYPE", "Precision of the KV cache", flag="--kv-cache-dtype")
    ] = "auto"
    max_model_len: Annotated[
        Positive,
        Var(
            "engine",
            "VLLM_MAX_MODEL_LEN",
            "Tokens of a sequence, in and out; by default no more than the model has",
            flag="--max-model-len",
        ),
    ] = 4096
    max_num_batched_tokens: Annotated[
        Positive,
        Var("engine", "VLLM_MAX_NUM_BATCHED_TOKENS", "Tokens of a scheduler step", flag="--max-num-batched-tokens"),
    ] = 4096
    strict_flags: Annotated[
        bool,
        Var(
            "engine",
            "VLLM_STRICT_FLAGS",
            "Refuse extra arguments that collide with ours, instead of dropping them",
            flag="--strict-flags",
        ),
    ] = False
    env_file_trusted: Annotated[
        bool, Var("engine", "VLLM_ENV_FILE_TRUSTED", "Let a shell source the env file, instead of parsing it")
    ] = False

    logging_level: Annotated[
        LogLevel, Var("logging", "VLLM_LOGGING_LEVEL", "Level of the engine's log", flag="--logging-level", engine=True)
    ] = "WARNING"
    prometheus_multiproc_dir: Annotated[
        Path | None, Var("logging", "PROMETHEUS_MULTIPROC_DIR", "Directory for metrics of several server processes")
    ] = None

    metrics_file: Annotated[
        Path | None,
        Var("metrics", None, "File to write what the run has cost to, as metrics for Prometheus", "--metrics-file"),
    ] = None

    prometheus_port: Annotated[
        Port,
        Var("monitor", "PROMETHEUS_PORT", "Port of the Prometheus that monitor up starts", flag="--prometheus-port"),
    ] = 9090
    grafana_port: Annotated[
        Port,
        Var("monitor", "GF_SERVER_HTTP_PORT", "Port of the Grafana that monitor up starts", flag="--grafana-port"),
    ] = 3000

    preflight: Annotated[
        bool,
        Var("up", None, "Look at port and GPUs, and stop a stale vLLM when the new model is ready", flag="--preflight"),
    ] = True
    ready_timeout: Annotated[
        Seconds,
        Var("up", None, "Seconds that --wait has, from the launch until the first token", flag="--ready-timeout"),
    ] = 1800.0
    dry_run: Annotated[
        bool,
        Var(
            "preflight",
            "VLLM_DRY_RUN",
            "Say what would happen; signal, write and start nothing",
            flag="--dry-run",
            strict=True,
        ),
    ] = False
    skip_gpu_check: Annotated[bool, Var("preflight", "VLLM_SKIP_GPU_CHECK", "Do not look at the GPUs", strict=True)] = (
        False
    )
    min_free_gpu_gb: Annotated[
        Gibibytes, Var("preflight", "VLLM_MIN_FREE_GPU_GB", "GiB of free memory that each GPU should have")
    ] = 4.0
    max_gpu_temp_c: Annotated[
        Positive, Var("preflight", "VLLM_MAX_GPU_TEMP_C", "Degrees Celsius above which a GPU is too hot")
    ] = 85
    max_gpu_util_pct: Annotated[
        Percent, Var("preflight", "VLLM_MAX_GPU_UTIL_PCT", "Per cent of utilisation above which a GPU is busy")
    ] = 95
    gpu_fail_on: Annotated[
        Conditions, Var("preflight", "VLLM_GPU_FAIL_ON", "What stops the start, instead of a warning")
    ] = ("temperature",)
    gpu_devices: Annotated[
        Devices, Var("preflight", "VLLM_GPU_DEVICES", "GPUs to check, by index or UUID; unset: CUDA_VISIBLE_DEVICES")
    ] = ()
    cuda_visible_devices: Annotated[
        str | None,
        Var("preflight", "CUDA_VISIBLE_DEVICES", "GPUs that the engine may use; empty: none of them", blank=True),
    ] = None
    gpu_probes: Annotated[Names, Var("preflight", None, "Ways to read the GPUs, the first that answers")] = (
        "nvml",
        "nvidia-smi",
    )
    gpu_probe_timeout: Annotated[
        Seconds, Var("preflight", None, "Seconds that one GPU probe may take, until it is killed")
    ] = 10.0
    allow_other_uid_kill: Annotated[
        bool, Var("preflight", "VLLM_ALLOW_OTHER_UID_KILL", "Also stop a stale vLLM of another user", strict=True)
    ] = False
    stop_timeout: Annotated[
        WholeSeconds, Var("preflight", "VLLM_STOP_TIMEOUT", "Seconds from SIGTERM to SIGKILL", flag="--stop-timeout")
    ] = 15
    process_signatures: Annotated[
        Names, Var("preflight", "VLLM_PROCESS_SIGNATURES", "Further programs, scripts or modules that are vLLM")
    ] = ()
    process_name_prefix: Annotated[
        Word, Var("preflight", "VLLM_PROCESS_NAME_PREFIX", "Prefix of the titles of vLLM's processes", engine=True)
    ] = "VLLM"
    reap_orphans: Annotated[
        bool,
        Var("preflight", None, "Stop engines of one's own that have lost their launcher", flag="--reap-orphans"),
    ] = False
    preflight_lockfile: Annotated[
        Path | None, Var("preflight", "VLLM_PREFLIGHT_LOCKFILE", "Lock of the preflight; unset: one per port in /tmp")
    ] = None
    preflight_json: Annotated[
        bool, Var("preflight", "VLLM_PREFLIGHT_JSON", "Print one JSON object on stdout", strict=True)
    ] = False
    preflight_proxy_child: Annotated[
        bool,
        Var(
            "preflight",
            "VLLM_PREFLIGHT_PROXY_CHILD",
            "Stay in front of the downstream command until it listens",
            strict=True,
        ),
    ] = True
    start_bind_timeout: Annotated[
        Seconds, Var("preflight", "VLLM_START_BIND_TIMEOUT", "Seconds that the downstream command has to listen")
    ] = 60.0
    start_bind_poll: Annotated[
        Seconds, Var("preflight", "VLLM_START_BIND_POLL", "Seconds between two looks at the port")
    ] = 0.2

    disable_plugins: Annotated[
        Names, Var("plugins", None, "Distributions whose plugins are not imported", flag="--disable-plugins")
    ] = ()
    plugin_timeout: Annotated[Seconds, Var("plugins", None, "Seconds that one call of a plugin may take")] = 60.0
    settings_file: Annotated[
        Path | None,
        Var("plugins", None, "Settings file; unset: settings.toml in the user's configuration", flag="--settings"),
    ] = None

    def __repr__(self) -> str:
        """Show the values; of a secret only whether it is set."""
        shown = (f"{name}={value!r}" for name, value in self.shown().items())
        return f"Settings({', '.join(shown)})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """Show the same to rich, which would look at the fields itself."""
        return list(self.shown().items())

    def shown(self) -> dict[str, object]:
        """Return every value by field, with ``********`` for the secrets that are set, and for those in URLs."""
        secrets = {name for name, row in Settings.__annotations__.items() if row.__metadata__[-1].secret}
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: MASK if value and name in secrets else without_user(value) for name, value in values.items()}

    @property
    def cache(self) -> Path:
        """The directory for env files, the engine's config and what we know of models in place."""
        return self.flox_env_cache or paths.user_cache()

    @property
    def gpus(self) -> int:
        """How many GPUs the engine is told to use, on one machine or on several."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def store(self) -> Path:
        """The directory of published models (DESIGN.md §7)."""
        if self.models_dir:
            return self.models_dir
        return self.flox_env_project / "models" if self.flox_env_project else paths.user_models()
