"""Processes beside the test's own, to be killed or to share a job; one loads torch, the others are its forks."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from astra_env.training.finetune import finetune
from astra_env.training.recipes import FinetuneConfig

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "accelerate", "astra_env.training.finetune", "astra_env.training.encode"])


def run(function: Callable[..., Any], *arguments: Any, count: int = 1) -> list[int]:
    """Call a function of a module in so many processes that know of each other; returns their exit codes."""
    port = free_port()
    processes = [_CONTEXT.Process(target=_member, args=(function, arguments, k, count, port)) for k in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _member(function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, count: int, port: int) -> None:
    if count > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    function(*arguments)


def finetune_shared_out(config: FinetuneConfig) -> None:
    """`finetune` under FSDP on CPUs, which accelerate leaves to accelerators: it is told that these are some."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    finetune(config)
