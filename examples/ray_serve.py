"""Several copies of the server behind one address, on one machine or on all of a cluster, by Ray Serve.

    pip install '.[serve]' 'ray[serve]'                       in a clone of the repository
    python examples/ray_serve.py --replicas 2                 a Ray of its own on this machine, http://127.0.0.1:8000
    python examples/ray_serve.py --address auto --replicas 8  on the cluster that this machine belongs to

`create_app` keeps nothing between two requests, so any copy may answer any of them. A copy that dies takes along what it was
making, and nothing else: Ray starts another one. Each copy batches for itself, so few copies with many requests each are
better than many with few. An API key, TLS and the rate of a client belong to whatever stands before it all.
"""

import argparse
import os
import signal
import threading

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions


def application(model: str = "speech", replicas: int = 2, cpus: float = 1.0, queue: int = 64) -> Application:
    """What `serve.run` takes: so many copies, each with its own model and so many processors."""

    def build() -> FastAPI:  # in each copy
        import torch

        from audiolm import bundle
        from audiolm.serving.limits import Limits
        from audiolm.serving.server import create_app

        torch.set_num_threads(max(1, int(cpus)))
        voice = bundle.detector_of(bundle.folder_of(model))
        return create_app(bundle.load(model), Limits(queue=queue, rate=0), detector=voice)

    copies = serve.deployment(
        serve.ingress(build)(),
        name="audiolm",
        num_replicas=replicas,
        max_ongoing_requests=queue,  # of one copy; the others wait before them all
        max_queued_requests=queue * replicas,
        ray_actor_options={"num_cpus": cpus},
        graceful_shutdown_timeout_s=180.0,
        health_check_period_s=2.0,
    )
    return copies.bind()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1.0, help="of each copy")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="of a running Ray; default: one of its own")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
    ray.init(address=options.address, **({} if options.address else alone))
    serve.start(http_options=HTTPOptions(host=options.host, port=options.port))
    serve.run(application(options.model, options.replicas, options.cpus), name="audiolm")
    print(f"audiolm: http://{options.host}:{options.port}, {options.replicas} copies", flush=True)
    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
