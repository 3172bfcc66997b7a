"""A cache whose metrics Prometheus reads.

    python examples/prometheus_metrics.py                  # until Ctrl-C: http://127.0.0.1:9464/metrics
    python examples/prometheus_metrics.py --seconds 5      # ends by itself, and prints what would be read

Needs `pip install opentelemetry-exporter-prometheus`. `serve_metrics` is all that a program adds; the rest
asks questions, some again, at random. The model is offline: no key, no network.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import urllib.request
from contextlib import suppress

from common.telling import summary
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

import ibidem

QUESTIONS = (
    "How long can I return goods?",
    "For how long can I return the goods?",
    "How long can I not return goods?",
    "Where is my parcel?",
    "Do you ship to Norway?",
    "Do you ship to Sweden?",
)


def serve_metrics(port: int) -> str:
    """Serve what Ibidem counts on loopback; returns where."""
    server, _ = start_http_server(port, addr="127.0.0.1")
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    return f"http://127.0.0.1:{server.server_port}/metrics"


def model(request: ibidem.Request) -> ibidem.Answer:
    """Answer as a model would, in a tenth of a second."""
    time.sleep(0.1)
    said = f"To {request.question!r} there is no answer offline."
    return ibidem.Answer(said, model="gpt-4o-mini", input_tokens=1_200, output_tokens=12)


def main() -> None:
    """Ask now and then."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--port", type=int, default=9464, help="where to listen; 0 for any that is free")
    options.add_argument("--seconds", type=float, default=0.0, help="end after so long")
    given = options.parse_args()
    url = serve_metrics(given.port)
    print(f"Prometheus reads {url}", flush=True)
    with tempfile.TemporaryDirectory() as place, ibidem.open(place) as cache:
        until = time.monotonic() + (given.seconds or float("inf"))
        with suppress(KeyboardInterrupt):
            while time.monotonic() < until:
                cache.answer(ibidem.Request(random.choice(QUESTIONS), scope="shop"), model)  # noqa: S311
                time.sleep(0.05)
        print(summary(cache.stats()), end="\n\n")
        with urllib.request.urlopen(url) as page:  # noqa: S310
            print(page.read().decode())


if __name__ == "__main__":
    main()
