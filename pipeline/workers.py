"""The processes of train.strategy=multi_worker: who is in the cluster, and which one this is.

A Kubernetes training operator starts the workers and says in TF_CONFIG who they are. Without it,
they are started on this machine, on loopback, with a TF_CONFIG of ours.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import ConfigError

TF_CONFIG: Final = "TF_CONFIG"
_HIDDEN: Final = "-1"


@dataclass(frozen=True)
class Cluster:
    """The addresses (host:port) of all workers, the chief first, and this one's place in it."""

    addresses: tuple[str, ...]
    worker: int

    @property
    def workers(self) -> int:
        """Returns how many there are."""
        return len(self.addresses)


def from_environment(environment: Mapping[str, str] | None = None) -> Cluster | None:
    """Returns the cluster that TF_CONFIG names; None without one.

    Raises:
      ConfigError: TF_CONFIG is damaged, or has this process do something else than train.
    """
    text = (os.environ if environment is None else environment).get(TF_CONFIG, "").strip()
    if not text or text == "{}":
        return None
    try:
        config = json.loads(text)
        hosts: dict[str, list[str]] = dict(config["cluster"])
        kind, index = str(config["task"]["type"]), int(config["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{type(error).__name__} in {text[:200]!r}") from None
    addresses = (*hosts.get("chief", ()), *hosts.get("worker", ()))
    if kind not in ("chief", "worker") or not 0 <= index < len(hosts.get(kind, ())):
        raise _damaged(f"task {kind} {index} of {sorted(hosts)}")
    return Cluster(addresses, index + (len(hosts.get("chief", ())) if kind == "worker" else 0))


def _damaged(found: str) -> ConfigError:
    return ConfigError(
        "TF_CONFIG does not make this process a worker of train.strategy=multi_worker: expected "
        '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": n}}, '
        f"with a chief or without; received {found}. Correct it, or unset it to train on this "
        "machine alone."
    )


def local(count: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Returns what the environment of each of `count` workers on loopback has to say.

    Args:
      count: of processes.
      gpus: this machine's, as in CUDA_VISIBLE_DEVICES; they are dealt out evenly, and hidden where
        there are fewer than workers: a step waits for the slowest.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    each = len(gpus) // count
    environments = []
    for index in range(count):
        config: dict[str, Any] = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        mine = gpus[index * each : (index + 1) * each]
        environments.append(
            {TF_CONFIG: json.dumps(config), "CUDA_VISIBLE_DEVICES": ",".join(mine) or _HIDDEN}
        )
    return environments


def _free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on now; all are held until the last is found."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
