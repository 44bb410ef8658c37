"""Prometheus metrics."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

FRAME_SECONDS = 1 / 75
STEP_BUCKETS = tuple(FRAME_SECONDS * factor for factor in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 1.5, 2, 4, 8, 16))
FIRST_AUDIO_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
WORK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
FACTOR_BUCKETS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
MODEL_LABELS = 64  # names of models in metrics, at most: whoever may load models could give each load another
OTHER_MODELS = "other"
NLL_BUCKETS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 14.0)


Mode = Literal["livesum", "livemin", "livemostrecent"]  # what several processes' gauges become together


class Metrics:
    """All metrics of one process, in a registry of their own; `app.server.exposition` adds up those of several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, descriptors; Linux alone has them

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"whispergpt_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str, mode: Mode = "livesum") -> Gauge:
            return Gauge(f"whispergpt_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"whispergpt_{name}", text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter("requests", "Requests by route and outcome", "route", "outcome")
        self.request_seconds = histogram(
            "request_seconds", "From first byte in to last byte out", WORK_BUCKETS, "route"
        )
        self.running = gauge("requests_running", "Requests being computed")
        self.waiting = gauge("requests_waiting", "Requests admitted and not yet computed")
        self.slots_used = gauge("slots_used", "Slots that compute a request")
        self.slots = gauge("slots", "Rows of all decode workers together")
        self.queue_seconds = histogram("queue_seconds", "Waiting for a slot", WORK_BUCKETS)
        self.audio_decode_seconds = histogram("audio_decode_seconds", "Decoding and resampling an upload", WORK_BUCKETS)
        self.prefill_seconds = histogram("prefill_seconds", "Reading a prompt: codec and language model", WORK_BUCKETS)
        self.first_audio_seconds = histogram(
            "time_to_first_audio_seconds", "From arrival to the first generated frame", FIRST_AUDIO_BUCKETS
        )
        self.first_sent_seconds = histogram(
            "first_audio_sent_seconds", "From arrival to the first generated audio handed to a stream's socket",
            FIRST_AUDIO_BUCKETS,
        )  # fmt: skip
        self.step_seconds = histogram("step_seconds", "One step: a frame of each row of a decode worker", STEP_BUCKETS)
        self.batch_size = histogram("batch_size", "Rows of a step", ROW_BUCKETS)
        self.real_time_factor = histogram(
            "real_time_factor", "Seconds of audio generated in a second of computing", FACTOR_BUCKETS
        )
        self.prompt_audio_seconds = counter("prompt_audio_seconds", "Audio read as prompt or scored")
        self.sessions = gauge("sessions", "Sessions that are open")
        kept = "Prompts and ends of continuations that are kept"
        # each process tells of what all keep together
        self.prompts_kept = gauge("prompts_kept", kept, "kind", mode="livemostrecent")
        self.prompts_kept_bytes = gauge("prompts_kept_bytes", "Memory that they take", mode="livemostrecent")
        self.generated_audio_seconds = counter("generated_audio_seconds", "Audio generated")
        self.prompt_tokens = counter("prompt_tokens", "Coarse tokens read as prompt or scored")
        self.generated_tokens = counter("generated_tokens", "Coarse tokens generated")
        self.rejected = counter("rejected", "Requests turned away before work", "reason")
        self.disconnects = counter("client_disconnects", "Clients that left before their answer", "stage")
        self.broken = counter("streams_broken", "Streams that ended in an error after their first byte", "reason")
        self.input_errors = counter("input_errors", "Inputs that could not be used", "reason")
        self.decoders_lost = counter("decoders_lost", "Decoder processes that ended unexpectedly", "when")
        for when in ("file", "rest", "start", "session"):
            self.decoders_lost.labels(when)  # 0 before the first one, or its loss would be no increase
        self.decoders = gauge("decoders", "Decoder processes that are there")
        self.processes_lost = counter("processes_lost", "Processes that ended unexpectedly, of several that serve")
        self.nonfinite = counter("nonfinite_logits", "Answers withheld because a likelihood was not finite")
        self.token_nll = histogram("token_nll", "Mean negative log-likelihood of a clip, nats a token", NLL_BUCKETS)
        self.loop_lag = histogram("event_loop_lag_seconds", "How late the event loop runs", FIRST_AUDIO_BUCKETS)
        self.batch_invariant = gauge(
            "batch_invariant", "1: a row gave the same bits alone and in company, at the start", mode="livemin"
        )
        self._model_labels: set[str] = set()
        self.model_loaded = gauge("model_loaded", "1: the model can be asked at once", "model", mode="livemin")
        self.model_bytes = gauge("model_bytes", "Memory of its weights and of all its slots", "model")
        self.model_slots_used = gauge("model_slots_used", "Slots that compute a request of it", "model")
        self.model_requests = counter("model_requests", "Requests that asked for it, or named none", "model")
        self.model_generated_tokens = counter("model_generated_tokens", "Coarse tokens generated by it", "model")
        self.model_prompt_tokens = counter("model_prompt_tokens", "Coarse tokens read or scored by it", "model")
        self.model_loads = counter("model_loads", "Models loaded", "model", "outcome")
        self.model_unloads = counter("model_unloads", "Models unloaded", "model", "reason")
        self.model_load_seconds = histogram("model_load_seconds", "Loading a model, its slots included", WORK_BUCKETS)
        self.build = Info("whispergpt_build", "Version and weights", registry=self.registry)

    def model_label(self, name: str) -> str:
        """What a model is called in metrics: its name, until there were too many of these."""
        if name not in self._model_labels and len(self._model_labels) >= MODEL_LABELS:
            return OTHER_MODELS
        self._model_labels.add(name)
        return name
