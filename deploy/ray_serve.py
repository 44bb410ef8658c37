"""The server on Ray Serve: the same application, a replica an engine, on one machine or many (docs/ray.md).

    python -m deploy.ray_serve check FILE     # is the file what we take it for?
    python -m deploy.ray_serve run FILE       # on a Ray of this machine's own, until Ctrl-C
    serve deploy FILE                         # on a cluster

`deploy/ray.yaml` is such a file. Ray imports this module, and so it wants the repository on each node's PYTHONPATH, or
as `working_dir` of `runtime_env`.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from ray import cloudpickle, serve

from deploy import ray_autoscaling
from deploy.ray_autoscaling import ByRequests
from deploy.ray_config import ConfigError, RayConfig, RayFile, read_file
from deploy.ray_replica import Replica

cloudpickle.register_pickle_by_value(ray_autoscaling)  # the controller is in no runtime environment of ours
WAIT_LOOP_SECONDS = 0.5  # between two looks of a replica that ends at whether it is empty


def options(config: RayConfig) -> dict[str, Any]:
    """What Ray is told of the deployment."""
    settings, replicas, resources = config.resolved, config.replicas, config.resources
    actor: dict[str, Any] = {
        "num_cpus": settings.threads if resources.cpus is None else resources.cpus,
        "num_gpus": resources.gpus,
        "memory": resources.memory_mib * 2**20,
        "resources": resources.named,
    }
    if replicas.max == replicas.min:
        number: dict[str, Any] = {"num_replicas": replicas.min}
    else:
        policy = {
            "policy_function": ByRequests,
            "policy_kwargs": {"running": replicas.running, "waiting": replicas.waiting},
        }
        number = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "upscale_delay_s": replicas.up_seconds,
                "downscale_delay_s": replicas.down_seconds,
                "look_back_period_s": replicas.look_back_seconds,
                "policy": policy,
            }
        }
    return number | {
        "ray_actor_options": actor,
        "max_ongoing_requests": config.ongoing,
        "max_queued_requests": config.max_queued_requests,
        "backpressure_config": {"status_code": 429, "retry_after_s": config.retry_after_seconds},
        "graceful_shutdown_wait_loop_s": WAIT_LOOP_SECONDS,
        "graceful_shutdown_timeout_s": config.shutdown_seconds,
        "health_check_period_s": config.health_seconds,
        "max_surge_percent": config.max_surge_percent,
        "logging_config": {"enable_access_log": False},  # it tells paths as they came; ours are the middleware's
    }


def application(args: RayConfig) -> serve.Application:
    """What `import_path` names; Ray makes the arguments of the file's `args`, and tells what is wrong with them."""
    made = serve.deployment(name="whisper-gpt", **options(args))(serve.ingress()(Replica))
    return made.bind(args.settings, args.ongoing)


def start(file: RayFile) -> None:
    """Starts Ray Serve on the Ray that this process is connected to, and waits until the application serves."""
    http = file.http_options
    serve.start(
        proxy_location=file.proxy_location,
        http_options={
            "host": http.host,
            "port": http.port,
            "request_timeout_s": http.request_timeout_s,
            "keep_alive_timeout_s": http.keep_alive_timeout_s,
        },
    )
    one = file.application
    serve.run(application(one.args), name=one.name, route_prefix=one.route_prefix)


def main() -> None:
    """Check a file, or run what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "run"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    try:
        file = read_file(arguments.file)
    except (ConfigError, OSError) as error:
        sys.exit(str(error))
    told = file.http_options
    if arguments.command == "check":
        for name, value in options(file.application.args).items():
            print(f"{name}: {value}")
        return
    start(file)
    print(f"ready: http://{told.host}:{told.port}/", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()


if __name__ == "__main__":
    main()
