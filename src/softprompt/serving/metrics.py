"""Figures for Prometheus.

Owns the metrics' names and labels. The label `model` takes the names of what is served, without versions, and nothing
else; a name that is unloaded takes its series along. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of one server.

    Args:
        figures: the engine's.
        serves: whether a name is served.
        loaded: how many prompts are.
    """

    def __init__(
        self, figures: Callable[[], Mapping[str, float]], serves: Callable[[str], bool], loaded: Callable[[], int]
    ) -> None:
        self._serves = serves
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "softprompt_http_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.running = Gauge("softprompt_http_requests_running", "Requests being answered.", registry=registry)
        self._prompts = Gauge("softprompt_prompts_loaded", "Prompts that are served.", registry=registry)
        self._prompts.set_function(loaded)
        self._seconds = Histogram(
            "softprompt_answer_seconds",
            "From a request's start to its answer's end.",
            ["model", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "softprompt_first_token_seconds",
            "From a request's start to its answer's first text.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._text_tokens = Counter("softprompt_text_tokens", "Tokens of texts.", ["model"], registry=registry)
        self._new_tokens = Counter("softprompt_new_tokens", "Tokens generated.", ["model"], registry=registry)
        registry.register(_Figures(figures))

    def answered(self, route: str, status: int) -> None:
        """Count a request. `route` is one of the API's own."""
        self._requests.labels(route, str(status)).inc()

    def first_text(self, model: str, seconds: float) -> None:
        """The first text of an answer has come."""
        if self._serves(model):
            self._first.labels(model).observe(seconds)

    def finished(self, model: str, route: str, seconds: float, text_tokens: int, new_tokens: int) -> None:
        """An answer is complete."""
        if self._serves(model):
            self._seconds.labels(model, route).observe(seconds)
            self._text_tokens.labels(model).inc(text_tokens)
            self._new_tokens.labels(model).inc(new_tokens)

    def drop(self, model: str) -> None:
        """Forget a name that is no longer served."""
        for metric in (self._seconds, self._first, self._text_tokens, self._new_tokens):
            metric.remove_by_labels({"model": model})

    def page(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self._registry)


class _Figures(Collector):
    """The engine's own figures, read when they are asked for."""

    def __init__(self, figures: Callable[[], Mapping[str, float]]) -> None:
        self._figures = figures

    def describe(self) -> list[Metric]:
        return []  # else they would be read at registration, before the engine runs

    def collect(self) -> Iterator[Metric]:
        for name, value in self._figures().items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            words = name.removesuffix("_total").replace("_", " ")
            yield kind(f"softprompt_engine_{name.removesuffix('_total')}", f"The engine's {words}.", value=value)
