"""Two replicas on this machine: conversations stay where they began, and a replica that is killed loses no request.

`python ray_replicas.py`, with `ray[serve]`, httpx and psutil beside the server; ends with 1 where a figure is not as it
must be.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
import yaml
from ray import serve

FOLDER = Path(__file__).parents[1] / "deploy" / "ray"
CONVERSATIONS, TURNS = 20, 3
CLIENTS, REQUESTS = 6, 25  # under load
KILLED_AFTER = 20  # answers
PORT = 8123


def main() -> None:
    """Start, look, and stop."""
    key = secrets.token_hex(32)
    os.environ["BITNET_SERVE_API_KEY"] = key
    # Where the processes of replicas find their code, too.
    os.environ["PYTHONPATH"] = f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sys.path.insert(0, str(FOLDER))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        _deploy()
        sys.exit(asyncio.run(_check(key)))
    finally:
        serve.shutdown()
        ray.shutdown()


def _deploy() -> None:
    """As serve.yaml says, with a part of a processor for each replica."""
    import replicas  # from FOLDER

    [application] = yaml.safe_load((FOLDER / "serve.yaml").read_text())["applications"]
    sizes = {one["name"]: one["num_replicas"] for one in application["deployments"]}
    small = {"num_cpus": 0.5}
    backend = replicas.Replica.options(num_replicas=sizes["Replica"], ray_actor_options=small)
    front = replicas.Front.options(num_replicas=sizes["Front"], ray_actor_options=small)
    serve.run(front.bind(backend.bind(application["args"])), name=application["name"], route_prefix="/")


async def _check(key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{PORT}", headers=headers, timeout=120, trust_env=False, limits=limits
    ) as client:
        told = await asyncio.gather(*(_converse(client, number) for number in range(CONVERSATIONS)))
        stayed = sum(len(set(places)) == 1 for places, _ in told)
        spread = Counter(places[0] for places, _ in told)
        cached = sum(tokens for _, tokens in told)
        print(f"conversations that stayed at one replica: {stayed} of {CONVERSATIONS}")
        print(f"conversations of each replica: {sorted(spread.values())}; prompt tokens from caches: {cached}")
        lost, back = await _kill(client)
    well = stayed == CONVERSATIONS and len(spread) == 2 and cached > 0 and not lost and back is not None
    return 0 if well else 1


async def _converse(client: httpx.AsyncClient, number: int) -> tuple[list[str], int]:
    """Where each turn was answered, and the tokens that were known there."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"A story of {number} friends in the woods:"}]
    places, cached = [], 0
    for _ in range(TURNS):
        found = await _ask(client, messages)
        places.append(found.headers["x-replica"])
        body = found.json()
        cached += body["usage"]["prompt_tokens_details"]["cached_tokens"]
        messages += [body["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    return places, cached


async def _ask(client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> httpx.Response:
    body = {"model": "stories", "messages": [{"role": one["role"], "content": one["content"]} for one in messages]}
    found = await client.post("/v1/chat/completions", json={**body, "max_tokens": 24, "ignore_eos": True})
    found.raise_for_status()
    return found


async def _stream(client: httpx.AsyncClient, message: dict[str, Any]) -> str:
    """Where a text that is sent in pieces came from, or how it ended else."""
    body = {"model": "stories", "messages": [message], "max_tokens": 24, "ignore_eos": True, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as found:
        lines = [line async for line in found.aiter_lines() if line]
    if lines[-1] == "data: [DONE]":
        return f"at {found.headers['x-replica']}"
    return "cut, and told so" if '"error"' in lines[-1] else "lost: a text that ends without a word"


async def _kill(client: httpx.AsyncClient) -> tuple[int, float | None]:
    """Kill a replica while clients ask: how many requests were lost, and when there were two again."""
    answers: Counter[str] = Counter()
    killed = 0.0

    async def load(number: int) -> None:
        nonlocal killed
        for turn in range(REQUESTS):
            try:
                message = {"role": "user", "content": f"Tale {number} of {turn}:"}
                if number % 2:
                    answers[await _stream(client, message)] += 1
                else:
                    answers[f"at {(await _ask(client, [message])).headers['x-replica']}"] += 1
            except httpx.HTTPError as error:
                answers[f"lost: {error!r:.80}"] += 1
            if not killed and answers.total() >= KILLED_AFTER:
                killed = time.monotonic()
                _replicas()[0].kill()

    await asyncio.gather(*(load(number) for number in range(CLIENTS)))
    lost = sum(count for name, count in answers.items() if name.startswith("lost"))
    print(f"requests while a replica was killed: {answers.total()}, lost: {lost}, by replica: {dict(answers)}")
    back = await _again(killed)
    print("the second replica did not come back" if back is None else f"two replicas again after {back:.1f} s")
    return lost, back


async def _again(killed: float) -> float | None:
    while time.monotonic() - killed < 120:
        states = serve.status().applications["bitnet"].deployments["Replica"].replica_states
        if states.get("RUNNING") == 2 and len(_replicas()) == 2:
            return time.monotonic() - killed
        await asyncio.sleep(0.2)
    return None


def _replicas() -> list[psutil.Process]:
    """The processes of replicas that are alive."""
    found = psutil.process_iter(["cmdline", "status"])
    mine = [one for one in found if "ServeReplica:bitnet:Replica" in " ".join(one.info["cmdline"] or [])]
    return [one for one in mine if one.info["status"] != psutil.STATUS_ZOMBIE]


if __name__ == "__main__":
    main()
