"""Free ports: no two servers that are about to start are given the same."""

import pytest

from things_kit.testing.servers.process import PORTS, WORKERS, free_ports


def test_a_port_that_was_given_away_is_not_given_again_though_nobody_listens_there_yet() -> None:
    ports = [port for _ in range(200) for port in free_ports(2)]
    assert len(set(ports)) == 400
    assert set(ports) <= set(PORTS)


def test_workers_that_start_servers_at_once_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[set[int]] = []
    for worker in range(WORKERS):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        ports.append(set(free_ports(50)))
    assert len(set.union(*ports)) == 50 * WORKERS


def test_a_process_may_start_more_servers_than_there_are_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    for _ in range(40):
        assert len(free_ports(50)) == 50
