"""Asking every worker of a proxy: which of them meets a new connection is chance."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.acceptance.bank import Account
from tests.proxy import Proxy

AT_ONCE = 8
SECONDS = 60.0


def at_each_worker(proxy: Proxy, account: Account, path: str, **headers: str) -> list[httpx.Response]:
    """The answers to some requests at once, and to more until each worker has answered one."""

    def ask(_: int) -> tuple[int, httpx.Response]:
        # No certificates: loading them takes longer than the request.
        with httpx.Client(trust_env=False, timeout=SECONDS, verify=False) as client:
            answer = client.get(f"{proxy.url}{path}", headers={**account.headers, **headers})
            return proxy.worker_at(answer), answer

    answers: list[httpx.Response] = []
    met: set[int] = set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while not met >= set(proxy.worker_pids()):
            for worker, answer in pool.map(ask, range(AT_ONCE)):
                met.add(worker)
                answers.append(answer)
    return answers
